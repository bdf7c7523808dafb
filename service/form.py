"""Reads the bodies of requests, multipart or JSON, into plain fields, pictures and a video.

Knows the two wire forms and nothing of what the fields mean. The openai SDK sends one file as
`input_reference` and several as `input_reference[]`; ours are `images`, repeated. A picture may be
given by its address where the server fetches any (`service/outward.py`). A video is a file in the
part `video`, or the id of one in `video[id]` or as JSON.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile

from service.errors import AddressError, RequestError
from service.intake import Upload
from service.outward import Outward
from service.settings import MAX_PICTURES

PICTURE_FIELDS = ("images", "input_reference", "input_references")
LINK_FIELDS = ("image_reference", "reference_url")  # by address, as other servers take them
JSON_FIELDS = ("guidance", "consent")  # text parts that hold JSON, besides subjects
MAX_PARTS = 64
MAX_TEXT_BYTES = 1 << 20
# The largest picture as base64. One emoji, and each byte takes nine of memory while it is parsed.
MAX_JSON_BYTES = 17_000_000


@dataclass
class Raw:
    """A body taken apart: fields by name (text, or JSON values), and pictures in order.

    `film` is a video as uploaded. `what` is asked for where that is not plainly a video: it is part
    of what makes a request the same.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    pictures: list[Upload] = field(default_factory=list)
    film: Upload | None = None
    what: str = ""

    def add(self, name: str, value: Any) -> None:
        """Raises RequestError when the field was given before."""
        if name in self.fields:
            raise RequestError(f"{name}: given twice.", param=name, code="duplicate_field")
        self.fields[name] = value

    def add_film(self, upload: Upload) -> None:
        """Raises RequestError when there is one already."""
        if self.film is not None:
            raise RequestError("video: given twice.", param="video", code="duplicate_field")
        self.film = upload

    def add_picture(self, name: str, filename: str, value: Any) -> None:
        """From base64, from a data: address that holds it, or an address to fetch it from.

        Raises:
            RequestError: it is none of these.
        """
        if isinstance(value, str) and _is_address(value):
            self.pictures.append(Upload(name, filename, b"", value))
        else:
            self.pictures.append(_inline(name, filename, value))


async def read_body(request: Request, outward: Outward | None = None) -> Raw:
    """The body. Pictures may be addresses where `outward` fetches any; here none is fetched.

    Raises:
        RequestError: another content type, or a body that is not what its type says.
    """
    raw = await _read(request)
    linked = [one for one in raw.pictures if one.link]
    if linked and (outward is None or not outward.fetches):
        raise _no_urls(linked[0].field)
    if len(linked) > MAX_PICTURES:
        raise RequestError(
            f"subjects: at most {MAX_PICTURES} pictures by address, got {len(linked)}.",
            param="subjects",
            code="too_many_subjects",
        )
    return raw


async def fetched(pictures: Sequence[Upload], outward: Outward) -> list[Upload]:
    """The same with the bytes of those that are addresses. Raises RequestError for the first that
    cannot be fetched."""
    return list(await asyncio.gather(*(_fetched(one, outward) for one in pictures)))


async def _fetched(picture: Upload, outward: Outward) -> Upload:
    if not picture.link:
        return picture
    try:
        return replace(picture, data=await outward.fetch(picture.link))
    except AddressError as error:
        raise RequestError(
            f"{picture.field}: the address {error}.", param=picture.field, code=error.code
        ) from error


async def _read(request: Request) -> Raw:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in {"multipart/form-data", "application/x-www-form-urlencoded"}:
        return await _read_form(request)
    if kind == "application/json":
        return _read_json(await _json_of(request))
    raise RequestError(
        f"Content-Type {kind or 'missing':.80}: send multipart/form-data or application/json.",
        code="unsupported_media_type",
        status=415,
    )


async def _json_of(request: Request) -> str:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_JSON_BYTES:
            raise RequestError(
                f"The body is larger than {MAX_JSON_BYTES / 1e6:g} MB, which is the limit for JSON;"
                " send pictures as parts of multipart/form-data.",
                code="body_too_large",
                status=413,
            )
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(f"not valid JSON ({error!s:.120}).", code="invalid_json") from error


def _require_utf8(request: Request) -> None:
    """Starlette decodes by whatever codec a client names, and Python has odd ones. Raises
    RequestError."""
    _, options = parse_options_header(request.headers["content-type"])
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in {"utf-8", "utf8", "us-ascii"}:
        raise RequestError(
            f"Content-Type charset {charset:.80}: send utf-8.",
            code="unsupported_media_type",
            status=415,
        )


async def _read_form(request: Request) -> Raw:
    _require_utf8(request)
    raw = Raw()
    form = request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_TEXT_BYTES)
    async with form as parts:
        for name, value in parts.multi_items():
            if isinstance(value, UploadFile) and name == "video":
                raw.add_film(Upload(name, value.filename or "", await value.read()))
            elif isinstance(value, UploadFile):
                raw.pictures.append(await _picture_part(name, value))
            elif name == "input_reference[image_url]":
                raw.add_picture(name, "", value)
            elif name in LINK_FIELDS:
                _add_links(raw, name, parse_json(value, name) if value[:1] in "[{" else value)
            elif name in {"video", "video[id]"}:
                raw.add("video", {"id": value} if "[" in name else parse_json(value, name))
            elif name == "subjects":
                raw.add(name, _lift_pictures(parse_json(value, name), raw, ("image_url",)))
            else:
                raw.add(name, _text_part(name, value))
    return raw


async def _picture_part(name: str, part: UploadFile) -> Upload:
    plain = name.removesuffix("[]")
    if plain not in PICTURE_FIELDS:
        raise RequestError(
            f"{name}: no file is expected here; pictures go into parts named 'images'.",
            param=name,
            code="unknown_field",
        )
    return Upload(plain, part.filename or "", await part.read())


def _text_part(name: str, value: str) -> Any:
    if name.startswith("input_reference["):
        raise _no_urls(name)
    if name in PICTURE_FIELDS:
        raise RequestError(f"{name}: must be a file part with a file name, not text.", param=name)
    if name in JSON_FIELDS:
        return parse_json(value, name)
    return value


def _no_urls(name: str) -> RequestError:
    return RequestError(
        f"{name}: this server fetches no addresses; upload the picture itself.", param=name
    )


def parse_json(text: str, param: str | None) -> Any:
    """JSON without duplicate keys and without NaN.

    Raises:
        RequestError: naming `param`.
    """
    where = f"{param}: " if param else ""
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        _require_whole(found)
        return found
    except (ValueError, RecursionError) as error:
        # UnicodeError and JSONDecodeError are ValueErrors
        raise RequestError(
            f"{where}not valid JSON ({error!s:.120}).", param=param, code="invalid_json"
        ) from error


def _require_whole(found: Any) -> None:
    """Raises UnicodeError for half of a character anywhere: it cannot be stored."""
    left = [found]
    while left:
        one = left.pop()
        if isinstance(one, str):
            one.encode()
        elif isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _read_json(text: str) -> Raw:
    values = parse_json(text, None)
    if not isinstance(values, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_json")
    raw = Raw()
    for name, value in values.items():
        if name in PICTURE_FIELDS:
            for place, one in enumerate(value if isinstance(value, list) else [value]):
                raw.add_picture(f"{name}[{place}]", "", _unwrapped(one))
        elif name in LINK_FIELDS:
            _add_links(raw, name, value)
        elif name == "subjects":
            raw.add(name, _lift_pictures(value, raw, ("image", "image_url")))
        elif value is not None:
            raw.add(name, value)
    return raw


def _add_links(raw: Raw, name: str, value: Any) -> None:
    """One or several of {"image_url": …}, or plain addresses."""
    for place, one in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(one, dict) and "file_id" in one:
            raise RequestError(f"{name}: there are no files here; send an image_url.", param=name)
        raw.add_picture(f"{name}[{place}]", "", _unwrapped(one))


def _unwrapped(value: Any) -> Any:
    """The SDK's {"image_url": …} as the address in it."""
    wrapped = isinstance(value, dict) and value.keys() == {"image_url"}
    return value["image_url"] if wrapped else value


def _lift_pictures(subjects: Any, raw: Raw, fields: tuple[str, ...]) -> Any:
    """Moves each subject's inline picture to `raw.pictures` and leaves its name in its place."""
    if not isinstance(subjects, list):
        return subjects
    return [_lift(subject, place, raw, fields) for place, subject in enumerate(subjects)]


def _lift(subject: Any, place: int, raw: Raw, fields: tuple[str, ...]) -> Any:
    given = [name for name in fields if isinstance(subject, dict) and name in subject]
    if not given:
        return subject
    name = f"subjects[{place}].{given[0]}"
    if "image_url" in given and "image" in subject:
        raise RequestError(f"{name}: give image or image_url, not both.", param=name)
    raw.add_picture(name, name, subject[given[0]])
    return {**{k: v for k, v in subject.items() if k != "image_url"}, "image": name}


def _is_address(text: str) -> bool:
    """Base64 holds no colon; data: addresses hold the picture itself."""
    return ":" in text[:64] and not text.startswith("data:")


def _inline(name: str, filename: str, value: Any) -> Upload:
    """A picture from base64, or from a data: address that holds base64."""
    if isinstance(value, dict):
        raise _no_urls(name)
    if not isinstance(value, str):
        raise RequestError(f"{name}: must be a picture as base64 text.", param=name)
    head, comma, tail = value.partition(",")
    text = tail if comma and head.startswith("data:") and head.endswith(";base64") else value
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            f"{name}: must be base64 text or data:image/png;base64,… ({error}).", param=name
        ) from error
    return Upload(name, filename, data)
