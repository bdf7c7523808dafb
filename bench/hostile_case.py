"""One request that means no good, and the two forms in which it can be sent."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

BOUNDARY = "b0undary"
FORM = f"multipart/form-data; boundary={BOUNDARY}"
JSON = "application/json"

Must = Literal["refused", "taken", ""]
Maker = Callable[[], bytes]


@dataclass(frozen=True)
class Case:
    """What to send, and what has to become of it; `must` empty: either, but in good order.

    make: the body, made only when it is sent, for there are large ones. fetches: it is for the
    gateway that fetches pictures. slow: it takes seconds, so only the full form has it.
    """

    kind: str
    name: str
    make: Maker
    type: str = FORM
    path: str = "/v1/videos"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    must: Must = ""
    fetches: bool = False
    slow: bool = False


def part(name: str, value: bytes, filename: bytes | None = None, more: bytes = b"") -> bytes:
    """One part of a form, without what separates it from the next."""
    head = b'content-disposition: form-data; name="' + name.encode() + b'"'
    if filename is not None:
        head += b'; filename="' + filename + b'"\r\ncontent-type: image/png'
    return head + b"\r\n" + more + b"\r\n" + value


def form(parts: Sequence[bytes]) -> bytes:
    """A body of these parts."""
    line = f"--{BOUNDARY}\r\n".encode()
    return b"".join(line + one + b"\r\n" for one in parts) + f"--{BOUNDARY}--\r\n".encode()


def with_picture(data: bytes, filename: bytes = b"anna.png", prompt: str = "@anna waves") -> bytes:
    """A form that asks for a video with one picture."""
    return form([part("prompt", prompt.encode()), part("images", data, filename)])


def text(asked: Any) -> bytes:
    """A body of JSON."""
    return json.dumps(asked).encode()


def inline(data: bytes) -> bytes:
    """The same as `with_picture` in JSON."""
    picture = base64.b64encode(data).decode()
    return text({"prompt": "@anna waves", "subjects": [{"name": "anna", "image": picture}]})
