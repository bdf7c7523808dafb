"""Bodies, paths and headers that mean no good: forms taken apart, JSON as deep and wide as it goes,
values of every kind in every field."""

import itertools
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.hostile_case import (
    BOUNDARY,
    FORM,
    JSON,
    Case,
    Maker,
    Must,
    form,
    inline,
    part,
    text,
    with_picture,
)
from bench.hostile_pictures import SOUND, sound

PROMPT = part("prompt", b"a meadow")
LINE = f"--{BOUNDARY}\r\n".encode()
END = f"--{BOUNDARY}--\r\n".encode()


# What Python would decode by, if a stranger's word for it were taken.
CODINGS = (
    "utf-7", "utf-16", "utf-16-le", "utf-32", "unicode_escape", "raw_unicode_escape", "idna",
    "punycode", "undefined", "rot13", "base64", "zip", "mbcs", "latin-1", "cp037", "a" * 3000,
)  # fmt: skip


def _given(data: bytes) -> Maker:
    return partial(bytes, data)


def forms(dice: random.Random) -> Iterator[Case]:
    """Forms that are none, or too much of one."""
    whole = form([PROMPT])
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=other",
        'multipart/form-data; boundary="',
        f"multipart/form-data; boundary={'b' * 5000}",
        "multipart/form-data; boundary=\u00e9\u00e9",
        f"multipart/form-data; charset=utf-7; boundary={BOUNDARY}x",
        "multipart/mixed; boundary=" + BOUNDARY,
        "text/plain",
        "application/x-pickle",
        "application/msgpack",
        "",
        "/",
        "a" * 5000,
    ):
        yield Case("forms", f"type {kind[:40]!r}", _given(whole), kind, must="refused")
    for coding in CODINGS:
        for words in (b"+2AA-", b"\\ud800", b"\xd8\0", b"\xff\xfe\0\xd8", b"xn--99999999999"):
            body, kind = form([part("prompt", words)]), f"{FORM}; charset={coding}"
            yield Case("forms", f"{words!r} in {coding}", _given(body), kind)
    for name, (body, must) in _broken().items():
        yield Case("forms", name, _given(body), must=must)
    large = {
        "10,000 parts": partial(_parts, 10_000),
        "65 fields": partial(_parts, 65),
        "65 files": partial(_parts, 65, b"a.png"),
        "a field of 2 MB": partial(form_of, "prompt", 2_000_000),
        "an unknown field with a name of 1 MB": partial(_long_name, 1_000_000),
        "a header of 1 MB": partial(_long_header, 1, 1_000_000),
        "10,000 headers": partial(_long_header, 10_000, 8),
        "a body of 98 MB": partial(form_of, "images", 98_000_000),
        "a picture of 13 MB": partial(with_picture, bytes(13_000_000)),
    }
    for name, make in large.items():
        yield Case("forms", name, make, must="refused", slow="98" in name)
    for data, kind, what in (
        (with_picture(sound("png")), FORM, "form"),
        (form([PROMPT]), FORM, "short form"),
        (inline(sound("png")), JSON, "json"),
    ):
        for at in sorted(dice.sample(range(len(data)), 30)):
            yield Case("forms", f"{what} ends at {at}", _given(data[:at]), kind)
        for _ in range(30):
            at, bit = dice.randrange(min(len(data), 400)), dice.randrange(8)
            bent = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            yield Case("forms", f"{what} with bit {bit} of {at} turned", _given(bent), kind)


def _broken() -> dict[str, tuple[bytes, Must]]:
    """Small ones."""
    whole = form([PROMPT])
    inner = form([PROMPT]).replace(BOUNDARY.encode(), b"inner")
    nested = b"content-type: multipart/mixed; boundary=inner\r\n"
    return {
        "nothing": (b"", "refused"),
        "an end alone": (END, "refused"),
        "a line alone": (LINE, ""),
        "without an end": (whole.removesuffix(END), ""),
        "bare line ends": (whole.replace(b"\r\n", b"\n"), "refused"),
        "words before": (b"words\r\n" + whole, ""),
        "words behind": (whole + b"words", ""),
        "twice": (whole + whole, ""),
        "nested": (form([part("prompt", inner, more=nested)]), ""),
        "no name": (form([b"content-disposition: form-data\r\n\r\nx"]), "refused"),
        "no headers": (form([b"\r\nx"]), "refused"),
        "no disposition": (form([b"a: b\r\n\r\nx"]), "refused"),
        "attachment": (form([b'content-disposition: attachment; name="prompt"\r\n\r\nx']), ""),
        "a name twice in one part": (
            form([b'content-disposition: form-data; name="prompt"; name="seed"\r\n\r\n1']),
            "",
        ),
        "an empty name": (form([PROMPT, part("", b"x")]), "refused"),
        "an unknown name": (form([PROMPT, part("__class__", b"x")]), "refused"),
        "the same name twice": (form([PROMPT, PROMPT]), "refused"),
        "a long name twice": (form([PROMPT, *[part("n" * 3000, b"x")] * 2]), "refused"),
        "a long name of a file": (form([PROMPT, part("n" * 3000, b"x", b"a")]), "refused"),
        "a file called prompt": (form([part("prompt", b"x", b"a")]), "refused"),
        "a picture as text": (form([PROMPT, part("images", b"x")]), "refused"),
        "nine pictures of one name": (
            form([PROMPT, *[part("images", sound("png"), b"a.png")] * 9]),
            "refused",
        ),
        "base64 by its header": (
            form([part("prompt", b"YQ==", more=b"content-transfer-encoding: base64\r\n")]),
            "",
        ),
        "utf-16 by its header": (
            form([part("prompt", b"\xff\xfea\0", more=b"content-type: a; charset=utf-16\r\n")]),
            "",
        ),
        "no utf-8": (form([part("prompt", b"\xff\xfe")]), ""),
        "half a character": (form([part("prompt", b"\xed\xa0\x80")]), ""),
        "a name that is no utf-8": (form([PROMPT, b"x" + part("a", b"x")]), "refused"),
        "a folded header": (
            form([b'content-disposition: form-data;\r\n name="prompt"\r\n\r\nx']),
            "",
        ),
        "NUL in a name": (form([PROMPT, part("pro\0mpt", b"x")]), "refused"),
        "_charset_": (form([part("_charset_", b"utf-7"), PROMPT]), "refused"),
        "a subject that is a number": (form([PROMPT, part("subjects", b"9")]), "refused"),
        "subjects that are no JSON": (form([PROMPT, part("subjects", b"[{")]), "refused"),
        "guidance without end": (form([PROMPT, part("guidance", b"[" * 100_000)]), "refused"),
        "two videos": (form([PROMPT, *[part("video", b"x", b"a.mp4")] * 2]), "refused"),
    }


def _parts(count: int, filename: bytes | None = None) -> bytes:
    return form([part(f"p{n}", b"x", filename) for n in range(count)])


def form_of(name: str, size: int) -> bytes:
    """A form with one field of so many letters."""
    return form([part(name, b"a" * size, b"a.png" if name == "images" else None)])


def _long_name(size: int) -> bytes:
    return form([PROMPT, part("n" * size, b"x")])


def _long_header(count: int, size: int) -> bytes:
    more = (b"x: " + b"a" * size + b"\r\n") * count
    return form([part("prompt", b"a meadow", more=more)])


TEXTS = ("prompt", "negative_prompt", "model", "size", "webhook_url", "solver", "tier", "priority")
NUMBERS = ("seed", "steps", "seconds", "num_frames", "fps", "n", "min_identity", "max_reseeds")
THINGS = ("guidance", "subjects", "images", "input_reference", "image_reference", "video")
WRONG: tuple[Any, ...] = (True, [], {}, [[]], -1, 1.5, "", "x", 10**17, [None], {"a": {"b": []}})


def values(dice: random.Random) -> Iterator[Case]:
    """Every field with values that it cannot have, and some that it can."""
    del dice
    for name, value in itertools.product((*TEXTS, *NUMBERS, *THINGS), WRONG):
        asked = {"prompt": "a meadow"} | {name: value}
        yield Case("values", f"{name}: {value!r:.20}", partial(text, asked), JSON)
    numbers = ("1e400", "-1e400", "1" * 5000, "-0.0", "1e-400", "NaN", "-Infinity", "0x10", "1_0")
    for name, number in itertools.product((*NUMBERS, "guidance"), numbers):
        body = f'{{"prompt": "a meadow", "{name}": {number}}}'.encode()
        yield Case("values", f"{name}: {number:.9}", _given(body), JSON)
        words = form([PROMPT, part(name, number.encode())])
        yield Case("values", f"{name} in a form: {number:.9}", _given(words))
    for name in (*TEXTS, *NUMBERS, *THINGS):
        asked = {"prompt": "a meadow"} | {name: "a" * 1_000_000}
        yield Case("values", f"{name} of 1 MB", partial(text, asked), JSON, must="refused")


def json_bodies(dice: random.Random) -> Iterator[Case]:
    """JSON that is none, is deep, or says things twice."""
    del dice
    for depth in (30, 500, 5_000, 100_000, 1_000_000):
        for opened, closed in (("[", "]"), ('{"a":', "}")):
            deep = opened * depth + ("1" if closed == "}" else "") + closed * depth
            for name in ("", "prompt", "guidance", "subjects", "images"):
                body = (f'{{"prompt": "a meadow", "{name}": {deep}}}' if name else deep).encode()
                what = f"{depth} deep in {name or 'nothing'}, {opened[0]}"
                yield Case("json", what, _given(body), JSON, must="refused")
        yield Case("json", f"{depth} open", _given(b"[" * depth), JSON, must="refused")
    halves = ('"\\ud800"', '"\\udfff"', '"a\\ud800b"', '"\\ud800\\ud800"', '"\\udc00\\ud800"')
    for name, half in itertools.product((*TEXTS, "images", "seed", "guidance"), halves):
        body = f'{{"prompt": "a meadow", "{name}": {half}}}'.encode()
        yield Case("json", f"half of a character in {name}", _given(body), JSON, must="refused")
    for name, body, must in _odd_json():
        yield Case("json", name, _given(body), JSON, must=must)
    wide = {
        "100,000 keys": partial(text, {"prompt": "a"} | {f"k{n}": n for n in range(100_000)}),
        "a key of 1 MB": partial(text, {"prompt": "a", "k" * 1_000_000: 1}),
        "17 MB of one string with an emoji": partial(_wide, 16_900_000),
        "100,000 subjects": partial(text, {"prompt": "a", "subjects": [{"name": "a"}] * 100_000}),
        "100,000 pictures": partial(text, {"prompt": "a", "images": ["aaaa"] * 100_000}),
        "20,000 names called": partial(text, {"prompt": " ".join(f"@a{n}" for n in range(20_000))}),
        "a prompt of 90 MB": partial(_long_prompt, 90_000_000),
    }
    for name, make in wide.items():
        yield Case("json", name, make, JSON, must="refused", slow="90" in name)


def _odd_json() -> Iterator[tuple[str, bytes, Must]]:
    good = b'{"prompt": "a meadow"}'
    yield "a mark of byte order", b"\xef\xbb\xbf" + good, ""
    for coding in ("utf-16", "utf-16-be", "utf-32", "utf-7", "cp037"):
        yield coding, good.decode().encode(coding), ""
    yield "no utf-8", b'{"prompt": "\xff"}', "refused"
    yield "half a character as bytes", b'{"prompt": "\xed\xa0\x80"}', "refused"
    yield "overlong", b'{"prompt": "\xc0\xaf"}', "refused"
    yield "a key twice", b'{"prompt": "a", "prompt": "b"}', "refused"
    yield "a key twice inside", b'{"prompt": "a", "guidance": {"scale": 1, "scale": 2}}', "refused"
    yield "half a character as a key", b'{"prompt": "a", "\\ud800": 1}', "refused"
    yield "NUL in the prompt", b'{"prompt": "a\\u0000b"}', ""
    yield "NUL in a key", b'{"prompt": "a", "\\u0000": 1}', "refused"
    for constant in ("NaN", "Infinity", "nan", "undefined", "None"):
        yield constant, f'{{"prompt": "a", "seed": {constant}}}'.encode(), "refused"
    for body in (b"", b" ", b"null", b"[]", b"1", b'"a"', b"{", b"}", b"{}", good + b"x", good * 2):
        yield f"{body[:9]!r}", body, "refused"
    for body in (b"{'prompt': 'a'}", b'{"prompt": "a",}', b'{"prompt": /* */ "a"}', b"\0" + good):
        yield f"{body[:16]!r}", body, "refused"
    for name in ("__proto__", "constructor", "__class__", "self", "model_config", "$ref"):
        yield f"a key {name}", json.dumps({"prompt": "a", name: {}}).encode(), "refused"


def _wide(size: int) -> bytes:
    return b'{"prompt": "\\ud83d\\ude00' + "\U0001f600".encode() + b"a" * size + b'"}'


def _long_prompt(size: int) -> bytes:
    return text({"prompt": "a" * size})


IDS = (
    "..%2f..%2fetc", "%00", "%ed%a0%80", "%ff", "video_" + "0" * 32, "a" * 5000, "*",
    "%0d%0aa:%20b", "local%2fvideo", "%e2%80%ae", "{{7*7}}", "-1", "null", "%25", ";",
    "characters", "edits", "~",
)  # fmt: skip


def doors(dice: random.Random) -> Iterator[Case]:
    """Odd paths, queries and headers."""
    del dice
    nothing = _given(b"")
    for one, tail in itertools.product(
        IDS, ("", "/content", "/references/a", "/events", "/content?variant=%ff", "/content?n=9e9")
    ):
        yield Case("doors", f"{one:.20}{tail}", nothing, "", f"/v1/videos/{one}{tail}", "GET")
    for one, (method, path) in itertools.product(
        IDS,
        (
            ("DELETE", "/v1/videos/{}"),
            ("POST", "/v1/videos/{}/cancel"),
            ("GET", "/v1/subjects/{}"),
            ("GET", "/v1/subjects/{}/images/9999999999999999999"),
            ("GET", "/v1/videos?after={}"),
            ("GET", "/v1/videos?limit={}"),
            ("GET", "/v1/models/{}"),
            ("GET", "/studio/{}"),
        ),
    ):
        name = f"{method} {path.format(one[:20])}"
        yield Case("doors", name, nothing, "", path.format(one), method)
    for name, value in itertools.product(
        ("idempotency-key", "authorization", "traceparent", "content-encoding", "range", "accept",
         "last-event-id", "x-stainless-retry-count", "x-forwarded-for", "origin", "if-none-match"),
        ("", "a" * 5000, "\u00ff\u00fe", "00-0-0-0", "Bearer \u00ff", "bytes=9-1", "-1", "\t"),
    ):  # fmt: skip
        make = partial(text, {"prompt": "a meadow"})
        yield Case("doors", f"{name}: {value[:20]!r}", make, JSON, headers={name: value})
    for method in ("PUT", "PATCH", "TRACE", "PROPFIND", "OPTIONS", "HEAD"):
        yield Case("doors", f"{method} /v1/videos", nothing, "", "/v1/videos", method)


def films(dice: random.Random) -> Iterator[Case]:
    """Files that are no videos, where a video is asked for; an edit has stored a photo by then."""
    photo = [part("prompt", b"@anna waves"), part("images", sound("png"), b"anna.png")]
    for path, fields in {
        "/v1/videos/edits": photo,
        "/v1/videos/characters": [part("name", b"anna")],
        "/v1/videos/extensions": [PROMPT, part("seconds", b"1")],
    }.items():
        for name in SOUND:
            body = form([*fields, part("video", sound(name), b"a.mp4")])
            yield Case("films", f"{name} to {path}", _given(body), path=path, must="refused")
        for name, data in _boxes(dice):
            body = form([*fields, part("video", data, b"a.mp4")])
            yield Case("films", f"{name} to {path}", _given(body), path=path, must="refused")


def _boxes(dice: random.Random) -> Iterator[tuple[str, bytes]]:
    head = b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
    yield "nothing", b""
    yield "a head alone", head
    yield "a box of 2^64", head + b"\0\0\0\1mdat" + b"\xff" * 8
    yield "a box of no bytes", head + b"\0\0\0\0moov"
    yield "boxes in boxes", head + b"".join(b"\0\x0f\xff\xffmoov" for _ in range(5000))
    yield "a list for ffmpeg", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "a playlist", b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    for number in range(6):
        yield f"noise {number}", head + dice.randbytes(4000)
