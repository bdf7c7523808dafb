"""One picture from stdin to a clean RGB PNG on stdout. Run as a child process, as a script.

A decoder is the one place where a stranger's bytes meet C code, so it runs alone, with a limit on
memory and time, and dies with the picture. What leaves it holds pixels only: no EXIF, no colour
profile, no second file hidden behind the first. Arguments: megapixels, seconds.

Exit 0 with a PNG on stdout, or exit 3 with one sentence on stderr that completes "the picture …".
It imports nothing of this project, so that starting it costs some 40 ms.
"""

import io
import os
import resource
import struct
import sys
import zlib

from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin

FORMATS = ("PNG", "JPEG", "WEBP")
GROUND = (235, 235, 235)  # light grey: what the engine pads references with
MIN_SIDE = 8
MAX_ASPECT = 12
MAX_SIDE = 2048  # no preset looks at more than this of a reference
MEMORY_BYTES = 1 << 30
REFUSED = 3

# What Pillow's readers raise on damaged input.
DAMAGE = (OSError, SyntaxError, ValueError, ArithmeticError, LookupError, struct.error, zlib.error)


class Refused(Exception):
    """The picture cannot be taken; the message completes "the picture …"."""


def clean(data: bytes, max_megapixels: float) -> bytes:
    """The picture upright, opaque, RGB, at most 2048 px a side, as PNG.

    Raises:
        Refused: not a still PNG, JPEG or WebP picture of sensible size, or damaged.
    """
    try:
        image = _open(data)
        _check_size(image, max_megapixels)
        image.load()
        upright = ImageOps.exif_transpose(image)
        flat = _opaque(upright)
        flat.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    except DAMAGE as error:
        raise Refused(f"is damaged and cannot be decoded ({error!s:.80})") from error
    out = io.BytesIO()
    flat.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise Refused("is not a PNG, JPEG or WebP picture, whatever its name says") from error
    # A phone's JPEG may carry further frames (MPO: a gain map, a second eye); its first one is it.
    if image.format in {"PNG", "WEBP"} and image.n_frames > 1:  # type: ignore[attr-defined]
        raise Refused(
            f"is animated ({image.n_frames} frames); send a still one"  # type: ignore[attr-defined]
        )
    return image


def _check_size(image: Image.Image, max_megapixels: float) -> None:
    """Only the header has been read by now."""
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise Refused(
            f"is {width}x{height}, {width * height / 1e6:.0f} megapixels;"
            f" at most {max_megapixels:g} megapixels"
        )
    if min(width, height) < MIN_SIDE:
        raise Refused(f"is {width}x{height}; each side must be at least {MIN_SIDE} px")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refused(f"is {width}x{height}; the longer side at most {MAX_ASPECT} times the other")


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip to white
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    ground = Image.new("RGB", rgba.size, GROUND)
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def main(arguments: list[str]) -> int:
    """Entry point of the child."""
    megapixels, seconds = float(arguments[0]), int(float(arguments[1])) + 1
    # What the first picture would load otherwise: a child that waits for one has done it by then.
    Image.preinit()
    assert WebPImagePlugin.SUPPORTED
    Image.MAX_IMAGE_PIXELS = None  # _check_size refuses more strictly, with a message
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # Of its own doing it ends by SIGXCPU; SIGKILL is somebody else's (`service.intake`).
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    try:
        png = clean(sys.stdin.buffer.read(), megapixels)
    except Refused as refusal:
        sys.stderr.write(str(refusal))
        return REFUSED
    sys.stdout.buffer.write(png)
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)  # taking the interpreter down takes as long as the picture took
