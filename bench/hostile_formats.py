"""Pictures of other formats than the three that are taken, of odd kinds of these, and with odd
words beside their pixels."""

import io
import random
import struct
from collections.abc import Iterator
from functools import cache, partial

from PIL import Image

from bench.hostile_case import Must
from bench.hostile_pictures import SIGNATURE, Picture, chunk, ihdr, png, sound, zeros

TAKEN = {"PNG", "JPEG", "MPO", "WEBP"}
ANIMATED = ("PNG", "WEBP", "GIF", "TIFF", "AVIF", "MPO")

# Beginnings of what Pillow cannot write.
HEADS: dict[str, bytes] = {
    "empty": b"",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "html": b"<!doctype html><script>alert(1)</script>",
    "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    "json": b'{"a": 1}',
    "text": b"just words",
    "utf-16": "just words".encode("utf-16"),
    "mvg": b"push graphic-context\nviewbox 0 0 9 9\nfill 'url(https://127.0.0.1/x\"|ls \"-la)'\n",
    "ps": b"%!PS-Adobe-3.0\n(/etc/passwd) (r) file\n",
    "eps with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, 99, 0, 0, 0, 0, 0xFFFF),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "jxl": b"\xff\x0a" + bytes(64),
    "jxl in boxes": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64),
    "jxr": b"II\xbc\x01\x08\0\0\0" + bytes(64),
    "exr": b"v/1\x01\x02\0\0\0" + bytes(64),
    "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 99999 +X 99999\n",
    "psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(64),
    "xcf": b"gimp xcf v011\0" + bytes(64),
    "dcm": bytes(128) + b"DICM" + bytes(64),
    "mng": b"\x8aMNG\r\n\x1a\n" + bytes(64),
    "bpg": b"BPG\xfb" + bytes(64),
    "flif": b"FLIF\x31\x31" + bytes(64),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(64),
    "emf": struct.pack("<II", 1, 108) + bytes(32) + b" EMF" + bytes(64),
    "fli": struct.pack("<IHHHHH", 200, 0xAF11, 1, 32, 32, 8) + bytes(200),
    "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c red", "a"};',
    "pcd": bytes(2048) + b"PCD_IPI" + bytes(64),
    "iptc": b"\x1c\x01\x5a\0\x05hello",
    "cur": struct.pack("<HHH", 0, 2, 1) + bytes(64),
    "ani": b"RIFF\x24\0\0\0ACONanih" + bytes(64),
    "avi": b"RIFF\x24\0\0\0AVI LIST" + bytes(64),
    "wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(64),
    "mp4": b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64),
    "mkv": b"\x1aE\xdf\xa3" + bytes(64),
    "ogg": b"OggS" + bytes(64),
    "mp3": b"ID3\x04" + bytes(64),
    "flac": b"fLaC" + bytes(64),
    "mpeg": b"\0\0\x01\xb3\x02\0\x20" + bytes(64),
    "swf": b"CWS\x0a" + bytes(64),
    "zip": b"PK\x03\x04" + bytes(64),
    "gz": b"\x1f\x8b\x08" + bytes(64),
    "bz2": b"BZh91AY&SY" + bytes(64),
    "xz": b"\xfd7zXZ\0" + bytes(64),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(64),
    "tar": b"anna.png".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
    "exe": b"MZ" + bytes(64),
    "elf": b"\x7fELF" + bytes(64),
    "class": b"\xca\xfe\xba\xbe" + bytes(64),
    "wasm": b"\0asm\1\0\0\0",
    "sqlite": b"SQLite format 3\0" + bytes(84),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "numpy": b"\x93NUMPY\x01\0v\0{'descr': '|O', 'shape': (1,)}" + bytes(64),
    "safetensors": struct.pack("<Q", 2**63) + b"{}",
    "ttf": b"\0\1\0\0" + bytes(64),
    "zeros": bytes(65536),
    "ones": b"\xff" * 65536,
    "base64 of a picture": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAAB",
    "a signature alone": SIGNATURE,
    "riff alone": b"RIFF\xff\xff\xff\xffWEBP",
    "start of jpeg alone": b"\xff\xd8\xff",
}


def formats(dice: random.Random) -> Iterator[Picture]:
    """Each that Pillow writes, and heads of others; all of them call themselves PNG."""
    del dice
    Image.init()
    for form in sorted(Image.SAVE):
        data = written(form)
        if data is not None:
            yield Picture(form, partial(bytes, data), "taken" if form in TAKEN else "refused")
    for name, data in HEADS.items():
        yield Picture(name, partial(bytes, data), "refused")


@cache
def written(form: str) -> bytes | None:
    """A small picture in that format; None where Pillow cannot write one alone."""
    for mode in ("RGB", "P", "L", "1", "F"):
        out = io.BytesIO()
        try:
            Image.new(mode, (32, 32), 1).save(out, form)
            return out.getvalue()
        except (OSError, ValueError, KeyError):
            continue
    return None


def odd(dice: random.Random) -> Iterator[Picture]:
    """PNG, JPEG and WebP of unusual kinds."""
    del dice
    yield from _odd_png()
    for name in ("png", "jpeg", "webp"):
        yield Picture(f"{name} with wrong sums", partial(_wrong_sums, name))
    for mode in ("1", "L", "LA", "P", "I;16", "I", "RGBA", "CMYK", "YCbCr"):
        for form in ("PNG", "JPEG", "WEBP"):
            yield Picture(f"{form} of {mode}", partial(_of_mode, mode, form))
    for form in ANIMATED:
        must: Must = "taken" if form == "MPO" else "refused"
        yield Picture(f"{form} that moves", partial(_moving, form), must)


def _odd_png() -> Iterator[Picture]:
    for colour in range(8):
        for depth in (1, 2, 4, 8, 16, 255):
            make = partial(png, 16, 16, depth, colour, size=20_000)
            yield Picture(f"png colour {colour}, depth {depth}", make)
    for width, height in ((0, 0), (0, 9), (1, 1), (7, 8), (8, 97), (2000, 100), (2**31, 8)):
        make = partial(png, width, height, size=1000)
        yield Picture(f"png of {width}x{height}", make, "refused")
    for place in range(3):
        for value in (1, 2, 255):
            last = bytes(value if at == place else 0 for at in range(3))
            yield Picture(f"png compression, filter, lacing {last!r}", partial(_laced, last))
    for name, chunks in _chunks().items():
        for colour in (0, 2, 3, 6):
            yield Picture(f"png {name}, colour {colour}", partial(_with, chunks, colour))
    for number, order in enumerate(("PE", "IEP", "PIE", "IPPE", "IIPE", "IP", "I", "EIP", "")):
        yield Picture(f"png in disorder {number}", partial(_ordered, order))


def _laced(last: bytes) -> bytes:
    return png(16, 16, size=900, last=last)


def _chunks() -> dict[str, bytes]:
    """Chunks that contradict their picture."""
    palette = chunk(b"PLTE", bytes(48))
    return {
        "without palette": b"",
        "palette of none": chunk(b"PLTE", b""),
        "palette of 300": chunk(b"PLTE", bytes(900)),
        "palette of two bytes": chunk(b"PLTE", b"\1\2"),
        "two palettes": palette * 2,
        "transparency before palette": chunk(b"tRNS", bytes(9)) + palette,
        "transparency of none": palette + chunk(b"tRNS", b""),
        "transparency of 300": palette + chunk(b"tRNS", bytes(300)),
        "transparency of one byte": palette + chunk(b"tRNS", b"\1"),
        "transparency of six": palette + chunk(b"tRNS", b"\xff" * 6),
        "gamma 0": palette + chunk(b"gAMA", bytes(4)),
        "short gamma": palette + chunk(b"gAMA", b"\1"),
        "chroma of none": palette + chunk(b"cHRM", b""),
        "size of pixels cut": palette + chunk(b"pHYs", b"\1\2"),
        "profile of nothing": palette + chunk(b"iCCP", b"p\0\0" + zeros(10)),
        "profile without name": palette + chunk(b"iCCP", b""),
        "text without end": palette + chunk(b"iTXt", b"k\0\1"),
        "exif of nothing": palette + chunk(b"eXIf", b""),
        "frame control alone": palette + chunk(b"fcTL", bytes(26)),
        "frames cut": palette + chunk(b"acTL", b"\1"),
        "unknown chunk that is needed": palette + chunk(b"ABCD", b"x"),
        "kind of no letters": palette + chunk(b"\0\0\0\0", b"x"),
    }


def _with(chunks: bytes, colour: int) -> bytes:
    return png(16, 16, 8, colour, before=chunks)


def _ordered(order: str) -> bytes:
    kinds = {"I": ihdr(16, 16), "P": chunk(b"IDAT", zeros(784)), "E": chunk(b"IEND", b"")}
    return SIGNATURE + b"".join(kinds[letter] for letter in order)


def _wrong_sums(name: str) -> bytes:
    data = bytearray(sound(name))
    data[29:33] = b"\xde\xad\xbe\xef"
    return bytes(data)


def _of_mode(mode: str, form: str) -> bytes:
    """In the next mode that the format knows."""
    image = Image.new("RGB", (24, 24), "teal").convert("L" if mode.startswith("I") else mode)
    image = image.convert(mode)
    out = io.BytesIO()
    try:
        image.save(out, form)
    except OSError:
        image.convert("RGB").save(out, form)
    return out.getvalue()


def _moving(form: str) -> bytes:
    frames = [Image.new("RGB", (24, 24), colour) for colour in ("teal", "red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, form, save_all=True, append_images=frames[1:])
    return out.getvalue()


def exif(tags: list[tuple[int, int, int, bytes]], follow: int = 0, order: bytes = b"II") -> bytes:
    """A block of tags: (tag, type, count, value or offset as four bytes)."""
    end = "<" if order == b"II" else ">"
    out = struct.pack(end + "2sHIH", order, 42, 8, len(tags))
    for tag, kind, count, value in tags:
        out += struct.pack(end + "HHI", tag, kind, count) + value.ljust(4, b"\0")[:4]
    return out + struct.pack(end + "I", follow)


TURNED = 0x0112
BLOCKS: dict[str, bytes] = {
    **{f"turned {n}": exif([(TURNED, 3, 1, struct.pack("<H", n))]) for n in (0, 2, 6, 8, 9, 65535)},
    **{f"turned, of type {n}": exif([(TURNED, n, 1, b"\6")]) for n in (0, 1, 2, 4, 7, 9, 11, 13)},
    "turned by 0/0": exif([(TURNED, 5, 1, b"\x1a")]) + bytes(8),
    "turned 2^31 times": exif([(TURNED, 3, 2**31, b"\x1a")]),
    "turned twice": exif([(TURNED, 3, 1, b"\6"), (TURNED, 3, 1, b"\x08")]),
    "turned by a letter": exif([(TURNED, 2, 2, b"6\0")]),
    "value outside": exif([(0x010E, 2, 100, b"\xff\xff\xff\x7f")]),
    "blocks in a ring": exif([(TURNED, 3, 1, b"\6")], follow=8),
    "in itself": exif([(0x8769, 4, 1, b"\x08"), (0x8825, 4, 1, b"\x08")]),
    "of 65,535 tags": struct.pack("<2sHIH", b"II", 42, 8, 65535) + bytes(24),
    "big end": exif([(TURNED, 3, 1, b"\0\6")], order=b"MM"),
    "beginning behind its end": struct.pack("<2sHI", b"II", 42, 2**31),
    "of another kind": b"XX*\0\x08\0\0\0\0\0",
    "of one byte": b"I",
    "of words": b"turn me over",
}
PACKETS: dict[str, bytes] = {
    "turned": b'<x tiff:Orientation="6"/>',
    "turned far": b'<x tiff:Orientation="99999999999999999999"/>',
    "turned by nothing": b'<x tiff:Orientation=""/>',
    "turned by words": b"<x><tiff:Orientation>left</tiff:Orientation></x>",
    "turned a thousand times": b'<x tiff:Orientation="6"/>' * 1000,
    "laughs": b'<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;">]><a>&c;</a>',
    "no text": b"\xff\xfe\x00" * 9,
}


def beside(dice: random.Random) -> Iterator[Picture]:
    """Odd EXIF and XMP, in each of the three formats."""
    del dice
    for kind, blocks in (("exif", BLOCKS), ("xmp", PACKETS)):
        for name, block in blocks.items():
            for form in ("png", "jpeg", "webp"):
                yield Picture(f"{form}, {kind} {name}", partial(_beside, form, kind, block))


def _beside(form: str, kind: str, block: bytes) -> bytes:
    data = sound(form)
    if form == "png":
        xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + block)
        return data[:33] + (xmp if kind == "xmp" else chunk(b"eXIf", block)) + data[33:]
    if form == "jpeg":
        head = b"http://ns.adobe.com/xap/1.0/\0" if kind == "xmp" else b"Exif\0\0"
        size = struct.pack(">H", 2 + len(head + block))
        return data[:2] + b"\xff\xe1" + size + head + block + data[2:]
    flag, name = (4, b"XMP ") if kind == "xmp" else (8, b"EXIF")
    canvas = bytes([flag, 0, 0, 0]) + (47).to_bytes(3, "little") + (39).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + data[12:]
    body += name + struct.pack("<I", len(block)) + block + bytes(len(block) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


NAMES: tuple[bytes, ...] = (
    b"",
    b".",
    b"..",
    b"../../../../etc/passwd",
    b"..\\..\\windows\\win.ini",
    b"/etc/passwd",
    b"C:\\con",
    b"nul",
    b"a\x00.png",
    b"\x00",
    b"%00.png",
    b"%2e%2e%2f.png",
    b"a" * 10_000,
    b"a" * 7_000 + b".png",
    "gnp.\u202eanna".encode(),
    "\u2066\u2067\ufeff".encode(),
    "ана\u0301.png".encode(),
    "\U0001f600.png".encode(),
    b"\xff\xfe\xfd.png",
    b"\xed\xa0\x80.png",
    b"\xc0\xae\xc0\xae/",
    b"a;b.png",
    b"a%0d%0ax: y.png",
    b"<script>alert(1)</script>.png",
    b"${jndi:ldap://127.0.0.1/a}",
    b"{{7*7}}",
    b"'; DROP TABLE videos; --",
    b"$(reboot).png",
    b"`reboot`.png",
    b"| reboot",
    b"anna.png.exe",
    b"anna.png/",
    b" anna.png ",
    b"-rf",
    b"*",
    b"?",
    b"~root",
    b"file:///etc/passwd",
    b"\\\\host\\share",
    b"\x1b[2J.png",
    b"\x7f\x08.png",
    b"a\tb.png",
    b"anna",
    b"anna.PNG",
)
