"""Each is what its name says: sound where it should be, and hostile where it should be."""

import io
import random

import pytest
from PIL import Image

from bench.hostile_pictures import (
    MARK,
    SOUND,
    STOWAWAYS,
    bent,
    bombs,
    cut,
    double,
    png,
    sound,
    turned,
    zeros,
)
from service import decode


@pytest.mark.parametrize("name", SOUND)
def test_sound_ones_are_sound(name: str) -> None:
    with Image.open(io.BytesIO(sound(name))) as image:
        image.load()
        assert image.size == (48, 40)


def test_our_own_png_is_one() -> None:
    for depth, colour in ((1, 0), (8, 2), (16, 6)):
        with Image.open(io.BytesIO(png(20, 9, depth, colour))) as image:
            image.load()
            assert image.size == (20, 9)
    assert len(zeros(50_000_000)) < 60_000


def test_cut_and_bent_ones_differ_from_the_sound_ones() -> None:
    dice = random.Random(1)
    for one in (*cut(dice, 3), *bent(dice, 3)):
        assert one.make() != sound(one.name.split()[0])
    assert turned("png", (0,)) == b"\x88" + sound("png")[1:]
    once, again = ([one.name for one in cut(random.Random(2))] for _ in range(2))
    assert once == again


def test_bombs_are_small_on_the_wire() -> None:
    made = [one for one in bombs(random.Random(1)) if not one.slow and "300 MB" not in one.name]
    assert len(made) > 40
    assert all(len(one.make()) < 6_000_000 for one in made)


def test_what_is_hidden_is_there_and_the_decoder_loses_it() -> None:
    found = list(double(random.Random(1)))
    assert len(found) == 9 * len(STOWAWAYS)
    for one in found:
        assert MARK in one.make()
    png_inside = next(one for one in found if one.name == "png and html inside")
    assert MARK not in decode.clean(png_inside.make(), 25)
