"""Short-lived addresses of a video's files: for players, and for others without an API key."""

import time
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from service.deps import LinkedRef, Reader, TheHouse
from service.refs import ref_of
from service.routes.content import CACHED, AsAsked, disposition, key_of, kind_of, send
from service.schemas import VideoUrl

router = APIRouter(prefix="/v1", tags=["content"])

USUAL_S = 900
MOST_S = 3600


@router.get("/videos/{video_id}/url")
def url(
    video_id: str,
    request: Request,
    caller: Reader,
    house: TheHouse,
    variant: Annotated[str, Query(max_length=32)] = "video",
    seconds: Annotated[int, Query(ge=1, le=MOST_S)] = USUAL_S,
) -> VideoUrl:
    """An address at which anybody may read one of the video's files for so many seconds, or until
    the video is deleted. The variants are those of the content."""
    key = key_of(house.ledger.read(ref_of(caller.tenant, video_id)), variant)
    expires = int(time.time()) + seconds
    headers = {
        "ResponseCacheControl": CACHED,
        "ResponseContentDisposition": disposition(f"{video_id}-{variant}", key),
        "ResponseContentType": kind_of(key),
    }
    lent = house.blobs.lend(key, seconds, headers)
    if lent is None:
        signature = house.links.sign(caller.tenant, video_id, variant, expires)
        path = {"tenant": caller.tenant, "video_id": video_id, "variant": variant}
        address = request.url_for("linked", **path)
        lent = str(address.include_query_params(expires=expires, signature=signature))
    return VideoUrl(id=video_id, variant=variant, url=lent, expires_at=expires)


@router.api_route("/links/{tenant}/{video_id}/{variant}", methods=["GET", "HEAD"])
def linked(
    video_id: str, variant: str, ref: LinkedRef, asked: AsAsked, house: TheHouse
) -> Response:
    """What such an address leads to, where the store signs none itself."""
    key = key_of(house.ledger.read(ref), variant)
    return send(house, key, f"{video_id}-{variant}", asked)
