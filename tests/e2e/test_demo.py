"""`troupe demo` as `make demo` runs it: real processes, a real POST, files, and nothing left."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def _demo(model: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if "REDIS_URL" not in name}
    command = [sys.executable, "-c", "from troupe.main import main; main()", "demo"]
    return subprocess.run(
        [*command, f"--model={model}", f"--out={folder}", "--steps=2"],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder.parent), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def _left_behind(folder: Path) -> list[str]:
    """Processes whose command line or environment knows of the demo's temporary state."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in str(process.environ().get("TROUPE_BLOBS_URL")):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_demo_makes_a_video_over_http_and_cleans_up(random_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    told = _demo(random_model, folder)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "http://127.0.0.1:" in told.stdout

    answer = json.loads((folder / "demo.json").read_text())
    assert answer["status"] == "completed" and answer["progress"] == 100
    assert [subject["name"] for subject in answer["subjects"]] == ["anna", "bob"]
    with av.open(str(folder / "demo.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == answer["num_frames"]
    with Image.open(folder / "demo.png") as sheet:
        sheet.verify()
    assert _left_behind(tmp_path) == []
    assert list(tmp_path.glob("troupe-demo-*")) == []


@pytest.mark.slow
def test_demo_with_a_flipped_byte_says_so_and_ends(random_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(random_model, model)
    weights = bytearray((model / "dit.safetensors").read_bytes())
    weights[len(weights) // 2] ^= 1
    (model / "dit.safetensors").write_bytes(weights)
    told = _demo(model, tmp_path / "out")
    assert told.returncode == 1
    assert "dit.safetensors" in told.stderr and "troupe doctor" in told.stderr
    assert _left_behind(tmp_path) == []
