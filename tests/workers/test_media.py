"""A finished video as the files that are kept."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import SigningError
from engine.spec import Reference
from engine.video import Video
from tests.service.rig import ROOT
from workers import signing
from workers.media import render
from workers.provenance import Origin, Provenance, Sealed, read


def test_small_frames_are_enlarged_for_viewing_and_all_three_open() -> None:
    frames = np.full((5, 64, 96, 3), 128, np.uint8)
    anna = Reference.from_image("anna", Image.new("RGB", (40, 30), "teal"))
    made = render(Video(frames, 8), [anna])
    film = Video.from_mp4(made.video)
    assert (len(film.frames), film.fps) == (5, 8)
    assert min(film.size) >= 256 and film.size[0] % 96 == 0
    assert Image.open(io.BytesIO(made.thumbnail)).format == "JPEG"
    assert Image.open(io.BytesIO(made.spritesheet)).format == "PNG"


def test_a_seal_signs_the_video_and_tells_for_the_result(tmp_path: Path) -> None:
    video = Video(np.full((5, 64, 96, 3), 128, np.uint8), 8)
    signing.make(tmp_path / "signing")
    origin = Origin("video_1", "ab", "waves")
    provenance = Provenance(signing.load(tmp_path / "signing"))
    made = render(video, [], lambda film: provenance.seal(film, origin))
    account = read(made.video)
    assert account.valid and account.generation["video_id"] == "video_1"
    assert made.told["frames_sha256"] == video.sha256()
    assert made.told["watermark"] == account.generation["watermark"]


def test_where_the_seal_fails_nothing_is_rendered() -> None:
    def refuse(video: Video) -> Sealed:
        raise SigningError("the disk with the key is gone")

    with pytest.raises(SigningError, match="key is gone"):
        render(Video(np.zeros((5, 64, 96, 3), np.uint8), 8), [], refuse)


FULL = """
import resource, sys
import numpy as np
from engine.video import Video
from service.errors import BlobFull
from workers.media import render
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    render(Video(np.random.default_rng(0).integers(0, 255, (5, 64, 96, 3), np.uint8), 8), [])
except BlobFull as error:
    sys.exit(str(error))
"""


def test_a_full_scratch_disk_is_told_from_an_encoder_that_fails() -> None:
    done = subprocess.run([sys.executable, "-c", FULL], cwd=ROOT, capture_output=True, text=True)
    assert "The disk on which this worker writes videos is full." in done.stderr
