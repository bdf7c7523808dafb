"""Reads the body of POST /v1/videos, multipart or JSON, into plain fields and pictures.

Knows the two wire forms and nothing of what the fields mean. The openai SDK sends one file as
`input_reference` and several as `input_reference[]`; ours are `images`, repeated.
"""

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from service.errors import RequestError
from service.intake import Upload

PICTURE_FIELDS = ("images", "input_reference")
JSON_FIELDS = ("subjects", "guidance")  # text parts that hold JSON
MAX_PARTS = 64
MAX_TEXT_BYTES = 1 << 20


@dataclass
class Raw:
    """A body taken apart: fields by name (text, or JSON values), and pictures in order."""

    fields: dict[str, Any] = field(default_factory=dict)
    pictures: list[Upload] = field(default_factory=list)

    def add(self, name: str, value: Any) -> None:
        """Raises RequestError when the field was given before."""
        if name in self.fields:
            raise RequestError(f"{name}: given twice.", param=name, code="duplicate_field")
        self.fields[name] = value


async def read_body(request: Request) -> Raw:
    """Raises RequestError: another content type, or a body that is not what its type says."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in {"multipart/form-data", "application/x-www-form-urlencoded"}:
        return await _read_form(request)
    if kind == "application/json":
        return _read_json(await request.body())
    raise RequestError(
        f"Content-Type {kind or 'missing'}: send multipart/form-data or application/json.",
        code="unsupported_media_type",
        status=415,
    )


async def _read_form(request: Request) -> Raw:
    raw = Raw()
    form = request.form(max_files=MAX_PARTS, max_fields=MAX_PARTS, max_part_size=MAX_TEXT_BYTES)
    async with form as parts:
        for name, value in parts.multi_items():
            if isinstance(value, UploadFile):
                raw.pictures.append(await _picture_part(name, value))
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


def parse_json(text: str | bytes, param: str | None) -> Any:
    """JSON without duplicate keys and without NaN.

    Raises:
        RequestError: naming `param`.
    """
    where = f"{param}: " if param else ""
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise RequestError(
            f"{where}not valid JSON ({error!s:.120}).", param=param, code="invalid_json"
        ) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key is given twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _read_json(body: bytes) -> Raw:
    values = parse_json(body, None)
    if not isinstance(values, dict):
        raise RequestError("The body must be a JSON object.", code="invalid_json")
    raw = Raw()
    for name, value in values.items():
        if name in PICTURE_FIELDS:
            raw.pictures += _inline_list(name, value)
        elif name == "subjects":
            raw.add(name, _lift_pictures(value, raw))
        elif value is not None:
            raw.add(name, value)
    return raw


def _inline_list(name: str, value: Any) -> list[Upload]:
    values = value if isinstance(value, list) else [value]
    return [_inline(f"{name}[{n}]", "", one) for n, one in enumerate(values)]


def _lift_pictures(subjects: Any, raw: Raw) -> Any:
    """Moves each subject's inline picture to `raw.pictures` and leaves its name in its place."""
    if not isinstance(subjects, list):
        return subjects
    lifted = []
    for place, subject in enumerate(subjects):
        if isinstance(subject, dict) and "image" in subject:
            name = f"subjects[{place}].image"
            raw.pictures.append(_inline(name, name, subject["image"]))
            subject = {**subject, "image": name}
        lifted.append(subject)
    return lifted


def _inline(name: str, filename: str, value: Any) -> Upload:
    """A picture from base64, or from a data: address that holds base64."""
    if isinstance(value, dict) or str(value).startswith(("http:", "https:", "file:", "s3:")):
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
