"""The bytes of a video: the mp4, its pictures, and the references it was made from."""

import re
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from service.deps import House, Reader, TheHouse
from service.errors import NotFound, NotReady, RequestError
from service.jobs import Job
from service.refs import ref_of

router = APIRouter(prefix="/v1/videos", tags=["content"])

VARIANTS = ("video", "thumbnail", "spritesheet", "preview")
TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
CACHED = "private, no-cache"  # kept, and asked for again each time: what is deleted is gone
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)


@dataclass(frozen=True)
class Asked:
    """How an object is asked for: wanted, known: the headers Range and If-None-Match."""

    method: str = "GET"
    wanted: str | None = None
    known: str | None = None


def _asked(
    request: Request,
    wanted: Annotated[str | None, Header(alias="range")] = None,
    known: Annotated[str | None, Header(alias="if-none-match")] = None,
) -> Asked:
    return Asked(request.method, wanted, known)


AsAsked = Annotated[Asked, Depends(_asked)]


@router.api_route("/{video_id}/content", methods=["GET", "HEAD"])
def content(
    video_id: str,
    asked: AsAsked,
    caller: Reader,
    house: TheHouse,
    variant: Annotated[str, Query(max_length=32)] = "video",
) -> Response:
    """The video, its thumbnail or contact sheet; a number: that candidate's video; or, while it
    runs, the latest preview."""
    key = key_of(house.ledger.read(ref_of(caller.tenant, video_id)), variant)
    return send(house, key, f"{video_id}-{variant}", asked)


@router.api_route("/{video_id}/references/{name}", methods=["GET", "HEAD"])
def reference(
    video_id: str, name: str, asked: AsAsked, caller: Reader, house: TheHouse
) -> Response:
    """A subject's picture, as the engine sees it."""
    job = house.ledger.read(ref_of(caller.tenant, video_id))
    for one in job.request["references"]:
        if one["name"] == name:
            return send(house, one["key"], f"{video_id}-{name}", asked)
    raise NotFound(f"The video has no subject {name!r:.80}.")


def key_of(job: Job, variant: str) -> str:
    """The blob of a variant.

    Raises:
        RequestError: there is no such variant of any video.
        NotFound: no such candidate.
        NotReady: not yet, or no more.
    """
    if variant not in VARIANTS and not (variant.isascii() and variant.isdigit()):
        names = ", ".join(VARIANTS)
        raise RequestError(f"variant: must be one of {names}, or a number.", "variant")
    key = job.text("preview") if variant == "preview" else _result_key(job, variant)
    if key is None:
        raise NotReady(f"There is no {variant} of this video now; its status is {job.state}.")
    return key


def _result_key(job: Job, variant: str) -> str | None:
    if job.state == "failed":
        raise NotReady(f"The video failed: {job.text('error_message')}")
    if not variant.isdigit():
        key: str | None = job.result.get(variant)
        return key
    # What was made without asking for several is the only candidate.
    made = job.result.get("candidates") or [job.result]
    if job.ended and int(variant) >= len(made):
        raise NotFound(f"There is no candidate {variant}; there are {len(made)}, from 0 on.")
    found: str | None = made[int(variant)].get("video") if job.ended else None
    return found


def send(house: House, key: str, name: str, asked: Asked) -> Response:
    """An object whole; for a Range in part, so that a browser can seek; or 304, if it is known."""
    size = house.blobs.size(key)
    digest = key.rsplit("/", 1)[-1].partition(".")[0]
    headers = {
        "accept-ranges": "bytes",
        "cache-control": CACHED if "/preview/" not in key else "no-store",
        "content-disposition": disposition(name, key),
        "etag": f'"{digest}"',
    }
    if digest in _digests(asked.known):
        return Response(status_code=304, headers=headers)
    start, end = parse_range(asked.wanted, size) or (0, size)
    partial = end - start < size
    if partial:
        headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    status, kind = 206 if partial else 200, kind_of(key)
    if asked.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=kind)
    body = house.blobs.read(key, start, end) if partial else house.blobs.read(key)
    return StreamingResponse(body, status_code=status, headers=headers, media_type=kind)


def kind_of(key: str) -> str:
    """The media type of an object."""
    return TYPES[key[key.rindex(".") :]]


def disposition(name: str, key: str) -> str:
    """Shown in the page; under a name of its own where it is saved."""
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f'inline; filename="{safe}{key[key.rindex(".") :]}"'


def _digests(known: str | None) -> set[str]:
    """What an If-None-Match lists (RFC 9110 13.1.2)."""
    return {one.strip().removeprefix("W/").strip('"') for one in (known or "").split(",")}


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
