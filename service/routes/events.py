"""GET /v1/videos/{id}/events: what happens to a video, as it happens."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from service.deps import House, Reader, TheHouse
from service.events import EventStream, Id, parse_id
from service.refs import ref_of

router = APIRouter(prefix="/v1/videos", tags=["events"])

HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # proxies must not collect it


@router.get("/{video_id}/events", response_class=EventStream)
async def events(
    video_id: str,
    caller: Reader,
    house: TheHouse,
    after: Annotated[str, Query(max_length=64)] = "",
    last_event_id: Annotated[str, Header(max_length=64)] = "",
) -> Response:
    """Server-sent events from the beginning, or after an event; 204 when all were seen."""
    start = parse_id(last_event_id, "Last-Event-ID") if last_event_id else parse_id(after, "after")
    ref = ref_of(caller.tenant, video_id)
    seen_all = partial(_seen_all, house, ref)
    if await seen_all(start):
        return Response(status_code=204)  # which is what ends a browser's EventSource
    house.events.check_room()
    return EventStream(house.events.listen(ref, start, seen_all), headers=HEADERS)


async def _seen_all(house: House, ref: str, last: Id) -> bool:
    """Raises NotFound for an unknown video."""
    job = await run_in_threadpool(house.ledger.read, ref)
    return job.ended and not await house.events.newer(ref, last)
