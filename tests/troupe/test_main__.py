"""`python -m troupe`, which torchrun starts: two processes make the video of one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.video import Video

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
CFG = {"parallel": "cfg"}


def troupe(folder: Path, *start: str, **options: str) -> subprocess.CompletedProcess[str]:
    """`troupe generate` in two steps, on one thread a process; started with `start` in front."""
    asked = {"subject": f"anna={folder}/anna.png", "out": str(folder / "out.mp4"), **options}
    flags = [part for name, value in asked.items() for part in (f"--{name}", value)]
    return subprocess.run(
        [sys.executable, *start, "-m", "troupe", "generate", "--prompt", "@anna waves", *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "anna.png")
    return tmp_path


def test_it_explains_itself(folder):
    done = troupe(folder, parallel="cfg")
    assert done.returncode == 1
    assert "Error: --parallel 'cfg' needs several processes; start them with" in done.stderr


@pytest.mark.slow
def test_two_processes_make_the_video_of_one(folder):
    """Forwards shared out: the same file. A sequence shared out: frames as good as the same."""
    made = {}
    for name in ("one", "cfg", "sequence"):
        path = folder / f"{name}.mp4"
        start, given = (*TORCHRUN, "2"), {"parallel": name}
        if name == "one":
            start, given = (), {}
        done = troupe(folder, *start, out=str(path), steps="4", size="64x64", frames="5", **given)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(str(path)) == 1 and "Error" not in done.stderr
        assert path.with_suffix(".png").is_file()
        made[name] = path.read_bytes()
    assert made["cfg"] == made["one"]
    frames = [Video.from_mp4(made[name]).frames.astype(int) for name in ("one", "sequence")]
    assert np.abs(frames[0] - frames[1]).max() <= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "given, says",
    [
        ({}, "--parallel is missing: torchrun has started 2 processes, and each would make"),
        ({**CFG, "subject": "anna=nobody.png"}, "anna: there is no file nobody.png"),
        ({"parallel": "cfg=3"}, "--parallel 'cfg=3' is for 3 processes, and 2 run"),
    ],
)
def test_one_of_two_processes_says_what_is_wrong(folder, given, says):
    done = troupe(folder, *TORCHRUN, "2", **given)
    assert done.returncode == 1
    # torchrun's own report comes behind it.
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(said) == 1 and says in said[0]
    assert not (folder / "out.mp4").exists()
