"""The model that ships, as it ships: verified, loaded, asked for a video."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from engine.pipeline import Engine
from engine.presets import MINIATURE
from engine.spec import Reference, Spec

ROOT = Path(__file__).parents[2]
D = MINIATURE.defaults


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(ROOT / "models" / "miniature")


def spec(prompt: str, names: tuple[str, ...], steps: int, seed: int = 7) -> Spec:
    return Spec(prompt=prompt, names=names, width=D.width, height=D.height, fps=D.fps,
                num_frames=D.num_frames, steps=steps, seed=seed)  # fmt: skip


def picture(name: str) -> Reference:
    return Reference.from_image(name, Image.open(ROOT / "examples" / f"{name}.png"))


def test_the_example_is_a_picture_of_a_meadow_and_the_same_bytes_twice(engine: Engine) -> None:
    prompt = (ROOT / "examples" / "prompt.txt").read_text().strip()
    asked = spec(prompt, ("anna", "bob"), steps=8)
    pictures = [picture("anna"), picture("bob")]
    first, again = engine.generate(asked, pictures), engine.generate(asked, pictures)
    assert first.frames.shape == (17, 64, 96, 3)
    assert np.array_equal(first.frames, again.frames)
    red, green, blue = (first.frames[..., channel].astype(float) for channel in range(3))
    assert (blue - red)[:, :10].mean() > 20, "the sky is blue"
    assert (green - blue)[:, -6:].mean() > 20, "the ground is green"


@pytest.mark.parametrize("name", ["astronaut", "cat", "coffee"])
def test_photos_of_another_world_go_through(engine: Engine, name: str) -> None:
    photo = Reference.from_image(name, Image.fromarray(getattr(data, name)()))
    video = engine.generate(spec(f"@{name} bounces at the beach", (name,), steps=2), [photo])
    assert video.frames.shape == (17, 64, 96, 3) and video.frames.std() > 10
