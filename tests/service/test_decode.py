"""Strangers' bytes to clean pixels: what is taken, and what is refused with which words."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.decode import GROUND, Refused, clean
from tests.service.rig import picture


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return image


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_three_formats_come_out_as_rgb_png(form: str) -> None:
    image = opened(clean(picture("teal", (40, 30), form), 25))
    assert image.size == (40, 30)
    assert all(
        abs(a - b) < 12 for a, b in zip(image.getpixel((20, 15)), (0, 128, 128), strict=True)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert opened(clean(encoded(Image.new(mode, (20, 20)), form), 25)).size == (20, 20)


def test_sixteen_bits_of_grey_keep_their_shade() -> None:
    middle = opened(clean(encoded(Image.new("I;16", (20, 20), 257 * 100)), 25))
    assert middle.getpixel((5, 5)) == (100, 100, 100)


def test_what_is_transparent_lies_on_the_engines_grey() -> None:
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    image.putpixel((3, 3), (255, 0, 0, 255))
    flat = opened(clean(encoded(image), 25))
    assert flat.getpixel((10, 10)) == GROUND and flat.getpixel((3, 3)) == (255, 0, 0)


def test_a_camera_held_upright_is_turned() -> None:
    image = Image.new("RGB", (40, 20), "black")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010F] = "a camera's secret"
    out = clean(encoded(image, "JPEG", exif=exif), 25)
    assert opened(out).size == (20, 40)
    assert b"secret" not in out


def test_only_pixels_survive() -> None:
    polyglot = picture() + b"<script>alert(1)</script>"
    assert b"script" not in clean(polyglot, 25)


def test_a_phones_second_frame_is_ignored() -> None:
    first, second = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    red = opened(clean(data, 25)).getpixel((9, 9))
    assert isinstance(red, tuple) and red[0] > 240 > 20 > red[2]


def test_large_pictures_are_reduced_with_their_aspect() -> None:
    assert opened(clean(picture("red", (4096, 1024)), 25)).size == (2048, 512)


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue", "green")]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_animations_are_refused(form: str) -> None:
    with pytest.raises(Refused, match=r"animated \(3 frames\)"):
        clean(animated(form), 25)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(Refused, match="not a PNG, JPEG or WebP"):
        clean(encoded(Image.new("RGB", (32, 32)), form), 25)


@pytest.mark.parametrize("data", [b"hello, I am text", b"", b"\x89PNG", b"%!PS-Adobe-3.0 EPSF"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        clean(data, 25)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_refused(form: str) -> None:
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    data = encoded(noise, form)
    with pytest.raises(Refused, match="damaged|not a PNG"):
        clean(data[: len(data) // 2], 25)


def test_a_bomb_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header of 30000x30000 in a few bytes: nothing is decoded."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as the child's main does
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(Refused, match="30000x30000, 900 megapixels; at most 25 megapixels"):
        clean(data, 25)


@pytest.mark.parametrize("size", [(4, 4), (100, 7), (500, 20)])
def test_slivers_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(Refused, match="side"):
        clean(picture("red", size), 25)


def test_real_photographs_pass() -> None:
    folder = Path(pytest.importorskip("skimage").__file__).parent / "data"
    photos = [folder / name for name in ("astronaut.png", "coffee.png", "chelsea.png")]
    found = [photo for photo in photos if photo.is_file()]
    assert found, "scikit-image carries at least one of them"
    for photo in found:
        assert min(opened(clean(photo.read_bytes(), 25)).size) >= 300
