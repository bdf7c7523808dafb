"""Tests stand where the code stands: a module and its test bear the same name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("service", "engine", "workers", "training", "troupe", "bench")

# Module -> why it has no test of the same name.
EXCUSED: dict[str, str] = {}


def _modules() -> list[Path]:
    found = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path.relative_to(ROOT) for path in found if path.name != "__init__.py"]


def _candidates(module: Path) -> list[Path]:
    """tests/a/b/test_c.py, tests/a/test_c.py or tests/a/test_b_c.py for a/b/c.py."""
    package, *middle = module.parent.parts
    name = module.stem.lstrip("_")
    flat = "_".join([*middle, name])
    return [
        Path("tests", *module.parent.parts, f"test_{name}.py"),
        Path("tests", package, f"test_{name}.py"),
        Path("tests", package, f"test_{flat}.py"),
    ]


@pytest.mark.parametrize("module", _modules(), ids=str)
def test_module_has_a_test_of_its_name(module: Path) -> None:
    if str(module) in EXCUSED:
        return
    wanted = _candidates(module)
    assert any((ROOT / test).is_file() for test in wanted), f"no test for {module}: {wanted[0]}"


def test_excuses_are_needed() -> None:
    for name in EXCUSED:
        assert (ROOT / name).is_file(), f"{name} is gone, so is its excuse"
        assert not any((ROOT / t).is_file() for t in _candidates(Path(name))), f"{name} has a test"
