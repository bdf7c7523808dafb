"""Which package may import which, held by a tool and by a fresh interpreter."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBE = "import sys, {module}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_import_contracts_hold() -> None:
    command = "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    done = _python("-c", command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "module",
    [
        "service.app",
        "service.ledger",
        "service.blobs",
        "engine.spec",
        "engine.presets",
        "engine.errors",
        "engine.runtime",
        "engine.candidates",
        "engine.folders",
        "engine.registry",
        "troupe.main",
    ],
)
def test_light_module_does_not_load_torch(module: str) -> None:
    done = _python("-c", PROBE.format(module=module))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
