"""The worker of the benches is the product's, but for its engine."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import sys
from bench import scripted, scripted_worker
from workers import app, boot
from workers.source import edit_of
edit_of(None, {}, None)
print(scripted_worker.app is app.app, boot.load_engine is scripted.load, "torch" in sys.modules)
"""


def test_only_the_engine_is_another() -> None:
    """Nor does a plain job bring torch along, which would take longer than a bench's lease."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "True", "False"], done.stderr
