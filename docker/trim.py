"""`python trim.py VENV`: take out of an environment what no process of an image uses; says the MB.

That is pip and setuptools, the descriptions of all Amazon services but S3 and those that hand out
credentials, the libraries' own tests, and where binutils are at hand what debuggers read in
extension modules.
"""

import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = ("pip", "setuptools", "pkg_resources", "_distutils_hack")
SERVICES = {"s3", "sts", "sso", "sso-oidc", "signin"}
WITH_TESTS = ("numpy", "scipy", "matplotlib", "networkx", "celery", "kombu")


def trim(venv: Path) -> None:
    """Once is enough; again does nothing."""
    for packages in venv.glob("lib/python*/site-packages"):
        gone = [*(packages / name for name in TOOLS), *packages.glob("distutils-precedence.pth")]
        gone += [path for name in TOOLS[:2] for path in packages.glob(f"{name}-*.dist-info")]
        for library in ("botocore", "boto3"):
            folders = (packages / library / "data").glob("*/")
            gone += [path for path in folders if path.is_dir() and path.name not in SERVICES]
        for name in WITH_TESTS:
            gone += [path for path in (packages / name).rglob("tests") if path.is_dir()]
        for path in gone:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        _strip(packages)
    for path in (venv / "bin").glob("pip*"):
        path.unlink()


def _strip(packages: Path) -> None:
    """Not what wheels bring in *.libs: it was rewritten, and strip may break it."""
    if shutil.which("strip") is None:
        return
    for path in packages.rglob("*.so"):
        if not any(folder.name.endswith((".libs", "torch", "nvidia")) for folder in path.parents):
            subprocess.run(["strip", "--strip-unneeded", path], check=True)


def size(venv: Path) -> float:
    """MB on disk, links counted once."""
    files = (path for path in venv.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_size for path in files) / 1e6


if __name__ == "__main__":
    [given] = sys.argv[1:]
    trim(Path(given))
    sys.stdout.write(f"{given}: {size(Path(given)):.0f} MB\n")
