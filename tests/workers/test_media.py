"""A finished video as the files that are kept."""

import io

import numpy as np
from PIL import Image

from engine.spec import Reference
from engine.video import Video
from workers.media import render


def test_small_frames_are_enlarged_for_viewing_and_all_three_open() -> None:
    frames = np.full((5, 64, 96, 3), 128, np.uint8)
    anna = Reference.from_image("anna", Image.new("RGB", (40, 30), "teal"))
    made = render(Video(frames, 8), [anna])
    film = Video.from_mp4(made.video)
    assert (len(film.frames), film.fps) == (5, 8)
    assert min(film.size) >= 256 and film.size[0] % 96 == 0
    assert Image.open(io.BytesIO(made.thumbnail)).format == "JPEG"
    assert Image.open(io.BytesIO(made.spritesheet)).format == "PNG"
