"""The example of the demo is whole, unseen in training, and the same one that the studio offers."""

from pathlib import Path

import pytest
from PIL import Image

from training.world.identity import Identity, describe, is_held_out

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
CAST = {
    "anna": Identity(3, 9, 0, 6, 1, 1, 2, 2, 4, 1),
    "bob": Identity(0, 7, 4, 1, 0, 1, 5, 5, 1, 10),
}


@pytest.mark.parametrize("name", CAST)
def test_picture_is_square_and_large_enough_to_look_at(name: str) -> None:
    with Image.open(EXAMPLES / f"{name}.png") as picture:
        assert picture.size == (256, 256)


@pytest.mark.parametrize("name", CAST)
def test_identity_was_kept_from_training(name: str) -> None:
    assert is_held_out(CAST[name]), describe(CAST[name])


def test_prompt_names_exactly_the_pictures() -> None:
    prompt = (EXAMPLES / "prompt.txt").read_text()
    assert {word[1:] for word in prompt.split() if word.startswith("@")} == set(CAST)


@pytest.mark.parametrize("name", ["anna.png", "bob.png", "prompt.txt"])
def test_studio_offers_the_same_example(name: str) -> None:
    served = ROOT / "service" / "studio" / "examples" / name
    assert served.read_bytes() == (EXAMPLES / name).read_bytes()
