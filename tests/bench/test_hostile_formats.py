"""Formats and odd kinds are what they say."""

import io
import random

from PIL import Image

from bench.hostile_formats import BLOCKS, NAMES, beside, exif, formats, odd, written
from bench.hostile_pictures import sound


def test_forty_formats_and_more() -> None:
    found = {one.name: one for one in formats(random.Random(1))}
    assert len(found) > 60
    taken = {name for name, one in found.items() if one.must == "taken"}
    assert taken == {"PNG", "JPEG", "MPO", "WEBP"}
    for name in ("GIF", "TIFF", "BMP", "ICO", "PPM"):
        with Image.open(io.BytesIO(found[name].make())) as image:
            assert image.format == name
    assert written("BUFR") is None  # Pillow has no writer of its own for it


def test_exif_and_xmp_are_read_as_such() -> None:
    found = {one.name: one.make() for one in beside(random.Random(1))}
    for form in ("png", "jpeg", "webp"):
        with Image.open(io.BytesIO(found[f"{form}, exif turned 6"])) as image:
            assert image.getexif()[0x0112] == 6
        with Image.open(io.BytesIO(found[f"{form}, xmp turned"])) as image:
            assert b"tiff:Orientation" in str(image.info.get("xmp") or image.info).encode()
    assert exif([])[:2] == b"II" and len(BLOCKS) > 20


def test_odd_kinds() -> None:
    found = {one.name: one for one in odd(random.Random(1))}
    assert len(found) > 150
    with Image.open(io.BytesIO(found["JPEG of CMYK"].make())) as image:
        assert image.mode == "CMYK"
    with Image.open(io.BytesIO(found["WEBP that moves"].make())) as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
    assert found["png with wrong sums"].make() != sound("png")


def test_names() -> None:
    assert len(set(NAMES)) == len(NAMES) > 40
    assert max(map(len, NAMES)) == 10_000
