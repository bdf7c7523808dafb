"""What the images are made of: read, linted, and their locks checked against what is tested."""

import ast
import fnmatch
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker.dockerfile import DOCKERFILE, ROOT, command, environment, line_of, stages, told
from tests.helm.chart import LEAST, objects
from workers.settings import Settings

IMAGES = ("gateway", "worker", "worker-tensorrt", "training")
LOCKS = ("gateway", "worker")
PIN = re.compile(r"(?m)^([A-Za-z0-9._-]+)==(\S+)((?: \\\n\s+--hash=sha256:[0-9a-f]{64})*)")
EXACT = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in re.findall(
    r"(?m)^([A-Za-z0-9._-]+)==([^\s+]+)", (ROOT / "constraints.txt").read_text())}  # fmt: skip


def lock(name: str) -> dict[str, str]:
    """Package -> version of a lock."""
    return {found[0]: found[1] for found in PIN.findall((ROOT / f"docker/{name}.lock").read_text())}


def test_hadolint_has_no_complaint() -> None:
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([tool, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bad = subprocess.run([tool, "-"], input="FROM x\n", capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and "DL3006" in bad.stdout


def test_every_base_is_given_with_its_digest() -> None:
    """None of ours names a tag: what is built on is one argument, refused without a digest."""
    known = stages()
    outside = {stage.base for stage in known.values()} - set(known)
    assert outside == {"${PYTHON}"}
    default = re.search(r"(?m)^ARG PYTHON(?:=(\S+))?$", DOCKERFILE.read_text())
    assert default is not None and (default[1] is None or "@sha256:" in default[1])
    [check] = [text for text in known["base"].all("RUN") if "PYTHON" in text]
    for given, status in (("a:b", 1), ("a:b@sha256:0", 0), ("", 1)):
        env = {"PYTHON": given}
        done = subprocess.run(["sh", "-c", check], env=env, capture_output=True, check=False)
        assert done.returncode == status, given


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_nobodys_root_and_holds_its_bill(name: str) -> None:
    assert told(name, "USER")[-1] == "10001:10001"
    assert command(name, "ENTRYPOINT") == ["/usr/bin/tini", "--"]
    assert told(name, "HEALTHCHECK")
    assert environment(name)["PATH"].startswith("/venv/bin:")
    sources = [re.search(r"--from=(\S+)", text) for text in told(name, "COPY")]
    [venv] = [found[1] for found in sources if found]
    [*_, made] = [text for text in told(venv, "RUN") if "pip install" in text]
    assert "sbom.py > /venv/sbom.cdx.json" in made
    parts = [part for text in told(venv, "RUN") for part in text.split("&&")]
    pips = [part for part in parts if "pip install" in part]
    assert pips and all("--require-hashes --no-deps" in part for part in pips)
    # The last stage installs nothing and downloads nothing.
    assert not any("pip" in text or "curl" in text for text in told(name, "RUN"))


@pytest.mark.parametrize("name", LOCKS)
def test_locks_hold_what_is_tested_here_by_hash(name: str) -> None:
    text = (ROOT / f"docker/{name}.lock").read_text()
    assert all(found[2] for found in PIN.findall(text))
    assert len(PIN.findall(text)) == len(re.findall(r"(?m)^[A-Za-z0-9]", text))
    locked = lock(name)
    both = {one: version for one, version in EXACT.items() if one in locked}
    assert len(both) > 40
    assert {one: locked[one] for one in both} == both


def test_the_gateway_has_no_tensor_library() -> None:
    heavy = {"torch", "numpy", "diffusers", "transformers", "safetensors", "triton", "scipy"}
    assert not heavy & lock("gateway").keys()
    assert not [name for name in lock("gateway") if name.startswith("nvidia")]
    assert {"torch", "diffusers", "model-signing"} <= lock("worker").keys()


def test_the_gateway_starts_with_nothing_but_its_lock() -> None:
    """Every process of the image, with all packages of this environment hidden that are not in its
    lock."""
    known = set(lock("gateway"))
    tops = importlib.metadata.packages_distributions()
    hidden = sorted(
        top
        for top, owners in tops.items()
        if not {re.sub(r"[-_.]+", "-", one).lower() for one in owners} & known
        and top not in {"service", "engine", "workers", "troupe", "training", "bench"}
    )
    assert {"torch", "numpy", "yaml"} <= set(hidden)
    code = (
        "import sys, importlib\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {hidden!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "for name in ('service.app', 'service.decode', 'service.decode_video', 'workers.reaper',\n"
        "             'workers.courier', 'troupe.main', 'troupe.keys', 'troupe.models'):\n"
        "    importlib.import_module(name)\n"
        "from service.app import create_app\n"
        "from service.settings import Settings\n"
        "create_app(Settings())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def _imported(package: str) -> set[str]:
    """Our packages that a package's modules import, anywhere."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                found |= {one.name.partition(".")[0] for one in node.names}
    return found & {"service", "engine", "workers", "training", "troupe", "bench", "tests"}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_holds_the_packages_that_its_packages_need(name: str) -> None:
    copied = {text.split()[-1].removeprefix("/app/").strip("/") for text in told(name, "COPY")}
    ours = copied & {"service", "engine", "workers", "training", "troupe"}
    for package in ours - {"troupe"}:  # whose commands load what they need as they are given
        assert _imported(package) <= ours, package


def test_the_context_holds_what_is_copied_and_no_secrets() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for stage in stages().values():
        for text in stage.all("COPY"):
            words = [word for word in text.split() if not word.startswith("--")]
            for source in [] if "--from" in text else words[:-1]:
                needed = "[" in source or any(fnmatch.fnmatch(source, rule) for rule in allowed)
                assert needed, source
                assert "[" in source or (ROOT / source).exists()
    assert not any(fnmatch.fnmatch(".env", rule) for rule in allowed)


def test_the_bill_names_what_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docker" / "sbom.py"], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout)
    assert (told["bomFormat"], told["specVersion"]) == ("CycloneDX", "1.5")
    found = {one["name"]: one for one in told["components"]}
    version = importlib.metadata.version("pydantic")
    assert found["pydantic"]["purl"] == f"pkg:pypi/pydantic@{version}"
    assert len(found) == len(told["components"]) > 100
    assert sum("licenses" in one for one in told["components"]) > 50


def test_trimming_leaves_what_is_used(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    kept = ["botocore/data/s3/a.json", "botocore/data/endpoints.json", "numpy/core.py"]
    gone = ["botocore/data/ec2/a.json", "numpy/tests/a.py", "pip/a.py", "pip-1.0.dist-info/a"]
    for name in kept + gone:
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("x")
    for _ in range(2):
        subprocess.run([sys.executable, ROOT / "docker" / "trim.py", tmp_path], check=True)
        left = {str(p.relative_to(packages)) for p in packages.rglob("*") if p.is_file()}
        assert left == set(kept)


@pytest.mark.skipif(shutil.which("strip") is None, reason="needs strip: apt-get install binutils")
def test_trimmed_modules_are_smaller_and_still_load(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    import uvloop

    shutil.copytree(Path(uvloop.__file__).parent, packages / "uvloop")
    before = sum(path.stat().st_size for path in packages.rglob("*.so"))
    subprocess.run([sys.executable, ROOT / "docker" / "trim.py", tmp_path], check=True)
    assert sum(path.stat().st_size for path in packages.rglob("*.so")) < 0.5 * before
    code = f"import uvloop, asyncio; assert uvloop.__file__.startswith({str(packages)!r});"
    code += "print(uvloop.run(asyncio.sleep(0, 7)))"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert done.stdout == b"7\n"


def test_the_images_commands_are_those_of_the_service() -> None:
    found = objects(LEAST)
    for image, name in (("gateway", "gateway"), ("worker", "worker-gpu")):
        args = found.at(f"Deployment/{name} spec.template.spec.containers.0.args")
        mine = command(image)
        assert args[: len(mine)] == mine
    probe = found.at("Deployment/worker-gpu spec.template.spec.containers.0.livenessProbe.exec")
    assert json.loads(told("worker", "HEALTHCHECK")[-1].partition("CMD ")[2]) == probe["command"]
    names = {name for image in IMAGES for name in environment(image) if name.startswith("TROUPE_")}
    assert names <= {f"TROUPE_{name.upper()}" for name in Settings.model_fields}
    assert [stage.name for stage in line_of("worker")] == ["base", "worker-base", "worker"]
