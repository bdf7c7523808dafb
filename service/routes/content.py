"""The bytes of a video: the mp4, its pictures, and the references it was made from."""

import re
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Request
from fastapi.responses import Response, StreamingResponse

from service.deps import House, TheHouse
from service.errors import NotFound, NotReady, RequestError
from service.ledger import Job

router = APIRouter(prefix="/v1/videos", tags=["content"])

Variant = Literal["video", "thumbnail", "spritesheet", "preview"]
TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)


@router.api_route("/{video_id}/content", methods=["GET", "HEAD"])
def content(
    video_id: str,
    request: Request,
    house: TheHouse,
    variant: Variant = "video",
    wanted: Annotated[str | None, Header(alias="range")] = None,
) -> Response:
    """The video, its thumbnail or contact sheet; or, while it runs, the latest preview."""
    job = house.ledger.read(video_id)
    key = job.text("preview") if variant == "preview" else _result_key(job, variant)
    if key is None:
        raise NotReady(f"There is no {variant} of this video now; its status is {job.state}.")
    return send(house, key, f"{video_id}-{variant}", request.method, wanted)


@router.api_route("/{video_id}/references/{name}", methods=["GET", "HEAD"])
def reference(video_id: str, name: str, request: Request, house: TheHouse) -> Response:
    """A subject's picture, as the engine sees it."""
    job = house.ledger.read(video_id)
    for one in job.request["references"]:
        if one["name"] == name:
            return send(house, one["key"], f"{video_id}-{name}", request.method, None)
    raise NotFound(f"The video has no subject {name!r:.80}.")


def _result_key(job: Job, variant: str) -> str | None:
    if job.state == "failed":
        raise NotReady(f"The video failed: {job.text('error_message')}")
    key: str | None = job.result.get(variant)
    return key


def send(house: House, key: str, name: str, method: str, wanted: str | None) -> Response:
    """An object whole or, for a Range, in part, so that a browser can seek."""
    size = house.blobs.size(key)
    suffix = key[key.rindex(".") :]
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=3600" if "/preview/" not in key else "no-store",
        "content-disposition": f'inline; filename="{_ascii(name)}{suffix}"',
        "etag": f'"{key.rsplit("/", 1)[-1].removesuffix(suffix)}"',
    }
    start, end = parse_range(wanted, size) or (0, size)
    partial = end - start < size
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    status, kind = 206 if partial else 200, TYPES[suffix]
    if method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    body = house.blobs.read(key, start, end) if partial else house.blobs.read(key)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=kind)


def _ascii(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)


def parse_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """[start, end) of one byte range (RFC 9110 14.2); None for the whole.

    A header that is not one simple range is ignored, as the RFC allows.

    Raises:
        RequestError: 416, a range that begins past the end.
    """
    match = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(size - int(last), 0), size
    if start >= size:
        raise RequestError(
            f"Range: the content has {size} bytes.", "Range", "range_not_satisfiable", 416
        )
    return start, end
