"""Pictures that mean no good: bombs, two files in one, cut and bent ones, formats nobody asked for.

A picture is (name, maker, what must become of it). `MARK` stands in everything that is hidden
behind or inside a picture: nothing of it may ever be stored.
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

from PIL import Image

from bench.hostile_case import Maker, Must

MARK = b"NOTHING-BUT-PIXELS"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples of a PNG's pixel, by its type of colour


class Picture(NamedTuple):
    """One of them."""

    name: str
    make: Maker
    must: Must = ""
    slow: bool = False


def chunk(kind: bytes, data: bytes, length: int | None = None) -> bytes:
    """A PNG's chunk. length: what it says of itself."""
    size = struct.pack(">I", len(data) if length is None else length)
    return size + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def ihdr(width: int, height: int, depth: int = 8, colour: int = 2, last: bytes = bytes(3)) -> bytes:
    """A PNG's head."""
    return chunk(b"IHDR", struct.pack(">IIBB", width, height, depth, colour) + last)


@cache
def zeros(size: int) -> bytes:
    """So many zero bytes, deflated, without ever holding them."""
    deflate, out, block = zlib.compressobj(9), bytearray(), bytes(1 << 20)
    for _ in range(size >> 20):
        out += deflate.compress(block)
    out += deflate.compress(bytes(size & (1 << 20) - 1))
    return bytes(out + deflate.flush())


def png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
    size: int | None = None,
    last: bytes = bytes(3),
) -> bytes:
    """A black PNG with further chunks before and behind its pixels. size: bytes of its rows."""
    row = 1 + -(-width * depth * PIXELS.get(colour, 1) // 8)
    pixels = zeros(row * height if size is None else size)
    head = SIGNATURE + ihdr(width, height, depth, colour, last)
    return head + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


@cache
def sound(name: str) -> bytes:
    """A small picture with nothing wrong, by its name in SOUND."""
    form, mode, options = SOUND[name]
    noise = random.Random(name).randbytes(48 * 40 * 3)
    image = Image.frombytes("RGB", (48, 40), noise).convert(mode)
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


SOUND: dict[str, tuple[str, str, dict[str, object]]] = {
    "png": ("PNG", "RGB", {}),
    "png-alpha": ("PNG", "RGBA", {}),
    "png-palette": ("PNG", "P", {"transparency": b"\x00\x80"}),
    "png-16": ("PNG", "I;16", {}),
    "jpeg": ("JPEG", "RGB", {}),
    "jpeg-progressive": ("JPEG", "RGB", {"progressive": True}),
    "jpeg-cmyk": ("JPEG", "CMYK", {}),
    "webp": ("WEBP", "RGB", {}),
    "webp-lossless": ("WEBP", "RGBA", {"lossless": True}),
    "gif": ("GIF", "P", {}),
    "tiff": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "avif": ("AVIF", "RGB", {}),
}


def cut(dice: random.Random, each: int = 36) -> Iterator[Picture]:
    """Every sound one, ended early."""
    for name in SOUND:
        size = len(sound(name))
        for at in sorted(dice.sample(range(1, size), each)):
            yield Picture(f"{name} ends at {at}", partial(_cut, name, at))


def _cut(name: str, at: int) -> bytes:
    return sound(name)[:at]


def bent(dice: random.Random, each: int = 40) -> Iterator[Picture]:
    """Every sound one with one to eight bits turned, half of them in its head."""
    for name in SOUND:
        size = 8 * len(sound(name))
        for number in range(each):
            reach = min(size, 800) if number % 2 else size
            bits = tuple(dice.randrange(reach) for _ in range(dice.randint(1, 8)))
            yield Picture(f"{name} bits {bits}", partial(turned, name, bits))


def turned(name: str, bits: tuple[int, ...]) -> bytes:
    """A sound picture with those bits turned."""
    data = bytearray(sound(name))
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


HUGE = ((2**31 - 1, 2**31 - 1), (65535, 65535), (100_000, 100_000), (178_956_971, 1), (5001, 5001))


def bombs(dice: random.Random) -> Iterator[Picture]:
    """Little that becomes a lot."""
    del dice  # they are what they are
    for width, height in HUGE:
        for depth, colour in ((1, 0), (8, 2), (8, 3), (16, 6)):
            make = partial(png, width, height, depth, colour, size=100)
            yield Picture(f"png says {width}x{height}, {depth}/{colour}", make, "refused")
    yield Picture("png 13378x13378, 1 bit", partial(png, 13378, 13378, 1, 0), "refused")
    yield Picture("png 13378x13378 rgb", partial(png, 13378, 13378), "refused", True)
    yield Picture("png 5000x5000, 16-bit rgba", partial(png, 5000, 5000, 16, 6), "taken", True)
    yield Picture("png 64x64 with 300 MB of rows", partial(png, 64, 64, size=300_000_000))
    yield from _packed_chunks()
    yield from _other_bombs()


def _packed_chunks() -> Iterator[Picture]:
    """In chunks beside the pixels."""
    heads = {
        b"zTXt": b"Comment\0\0",
        b"iTXt": b"Comment\0\1\0\0\0",
        b"iCCP": b"profile\0\0",
    }
    for kind, head in heads.items():
        for where in ("before", "after"):
            make = partial(_packed, kind, head, where)
            yield Picture(f"png {kind.decode()} of 300 MB {where} the pixels", make)
    many = {
        "50,000 texts": partial(_many, chunk(b"tEXt", b"k\0" + bytes(100)), 50_000),
        "100,000 empty pieces": partial(_many, chunk(b"IDAT", b""), 100_000),
        "2^31 frames": partial(_many, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)), 1),
        "a text of 4 GB": partial(_many, chunk(b"tEXt", b"k\0v", 2**32 - 1), 1),
    }
    for name, make in many.items():
        yield Picture(f"png {name}", make)


def _packed(kind: bytes, head: bytes, where: str) -> bytes:
    return png(64, 64, **{where: chunk(kind, head + zeros(300_000_000))})  # type: ignore[arg-type]


def _many(one: bytes, times: int) -> bytes:
    return png(64, 64, before=one * times)


def _other_bombs() -> Iterator[Picture]:
    """Of every other form that can say more than it holds."""
    for name, data in _heads().items():
        yield Picture(name, partial(bytes, data), "refused")
    yield Picture("webp 16000x1500 of one colour", _wide_webp, "taken", True)
    yield Picture("webp of 400 frames", partial(_frames, "WEBP", 400), "refused")
    yield Picture("png of 400 frames", partial(_frames, "PNG", 400), "refused")
    yield Picture("gif of 400 frames", partial(_frames, "GIF", 400), "refused")
    yield Picture("jpeg says 65535x65535", _wide_jpeg, "refused")
    yield Picture("jpeg of 3,000 scans of 24 megapixels", _scans, "refused", True)
    laughs = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise("abcdefghi"))
    svg = f'<!DOCTYPE svg [<!ENTITY a "ha">{laughs}]><svg>&i;</svg>'
    yield Picture("svg of a billion laughs", partial(str.encode, svg), "refused")
    yield Picture("deflated zeros, 100 MB", partial(zeros, 100_000_000), "refused")


def _heads() -> dict[str, bytes]:
    """Heads that promise 60,000x60,000 and more."""
    wide = 60_000
    tiff = struct.pack("<2sHIH", b"II", 42, 8, 4)
    for tag, value in ((256, wide), (257, wide), (259, 8), (273, 8)):
        tiff += struct.pack("<HHII", tag, 4, 1, value)
    ico = struct.pack("<HHH", 0, 1, 255) + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 99, 22) * 255
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\xff" * 2
    vp8l = b"VP8L" + struct.pack("<I", 6) + b"\x2f\xff\xff\xff\x0f\x00"
    return {
        "gif 65535x65535": b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x08\0;",
        "bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, wide, wide, 1, 8, 1, *[0] * 5),
        "tiff": tiff + bytes(4),
        "tiff whose list of tags is itself": struct.pack("<2sHIHI", b"II", 42, 8, 0, 8),
        "psd": b"8BPS" + struct.pack(">H6sHIIHH", 1, bytes(6), 4, wide, wide, 8, 3) + bytes(14),
        "ico": ico,
        "jp2": b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 47, 0, *[2**31] * 4) + bytes(30),
        "dds": b"DDS " + struct.pack("<IIII", 124, 0x1007, wide, wide) + bytes(108),
        "pnm": b"P6 99999 99999 255\n",
        "tga": struct.pack("<BBBHHBHHHHBB", 0, 0, 10, 0, 0, 0, 0, 0, 65535, 65535, 24, 0),
        "qoi": b"qoif" + struct.pack(">IIBB", 2**31, 2**31, 4, 0),
        "sgi": b"\x01\xda\x01\x01\x00\x03" + struct.pack(">HHH", 65535, 65535, 4) + bytes(500),
        "pcx": b"\x0a\x05\x01\x08" + struct.pack("<HHHH", 0, 0, 65534, 65534) + bytes(116),
        "fits": b"SIMPLE  =                    T".ljust(80) + b"NAXIS1  = 99999".ljust(2800),
        "webp canvas of 2^48 px": b"RIFF" + struct.pack("<I", 22) + b"WEBP" + vp8x,
        "webp lossless 16384x16384": b"RIFF" + struct.pack("<I", 18) + b"WEBP" + vp8l,
    }


def _wide_webp() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16000, 1500), "teal").save(out, "WEBP", lossless=True, method=0, quality=0)
    return out.getvalue()


def _frames(form: str, count: int) -> bytes:
    frames = [Image.new("RGB", (32, 32), (n % 256, n // 256, 9)) for n in range(count)]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def _wide_jpeg() -> bytes:
    data = sound("jpeg")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]


def _scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again, each to be gone through."""
    out = io.BytesIO()
    Image.new("L", (4900, 4900)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 3000 + b"\xff\xd9"


# What can be hidden in or behind a picture.
STOWAWAYS = {
    "html": b"<html><script>alert('" + MARK + b"')</script></html>",
    "php": b"<?php system($_GET['" + MARK + b"']); ?>",
    "pdf": b"%PDF-1.4\n1 0 obj<</JS(" + MARK + b")>>endobj\n%%EOF",
    "sh": b"#!/bin/sh\necho " + MARK,
    "elf": b"\x7fELF\x02\x01\x01" + bytes(9) + MARK,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='" + MARK + b"'/>",
    "mp4": b"\0\0\0\x18ftypisom\0\0\0\0isommp42\0\0\0\x20free" + MARK,
    "zip": b"PK\x03\x04\x14\0\0\0\0\0" + bytes(16) + MARK + b"PK\x05\x06" + bytes(18),
    "gif": b"GIF89a\x01\0\x01\0\0\0\0" + MARK + b";",
    "rar": b"Rar!\x1a\x07\x00" + MARK,
}


def double(dice: random.Random) -> Iterator[Picture]:
    """Two files in one."""
    del dice
    for name, other in STOWAWAYS.items():
        for first in ("png", "jpeg", "webp"):
            yield Picture(f"{first} and {name} behind", partial(_behind, first, other), "taken")
            yield Picture(f"{first} and {name} inside", partial(_inside, first, other), "taken")
            yield Picture(f"{name} and {first} behind", partial(_before, first, other), "refused")


def _behind(name: str, other: bytes) -> bytes:
    return sound(name) + other


def _before(name: str, other: bytes) -> bytes:
    return other + sound(name)


def _inside(name: str, other: bytes) -> bytes:
    """In a text chunk, a comment, or a chunk that no reader knows."""
    data = sound(name)
    if name == "png":
        return data[:33] + chunk(b"tEXt", b"Comment\0" + other) + data[33:]
    if name == "jpeg":
        return data[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(other)) + other + data[2:]
    body = data[8:] + b"XTRA" + struct.pack("<I", len(other)) + other + bytes(len(other) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body
