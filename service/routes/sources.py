"""/v1/videos/edits, /extensions, /{id}/remix: begin with a video; and /sync, which waits."""

import asyncio
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from service import sources
from service.accept import Order, accept, place
from service.auth import Caller
from service.deps import House, TheHouse, Writer
from service.errors import StillRunning, VideoFailed
from service.events import parse_id
from service.form import Raw, read_body
from service.logs import named
from service.refs import ref_of
from service.routes.content import Asked, send
from service.routes.videos import BODY
from service.schemas import EditVideo, Video
from service.traces import note, span

router = APIRouter(prefix="/v1/videos", tags=["videos"])

OrderOf = Callable[[Raw, Mapping[str, str], Caller, House], Order]
SYNC_LIMIT_S = 300.0
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,6})", re.ASCII)
FORM = {"schema": {**EditVideo.model_json_schema(), "title": "EditVideo"}}
EDIT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": FORM, "application/json": FORM},
    }
}


@router.post("/edits", status_code=202, openapi_extra=EDIT_BODY)
async def edit(request: Request, response: Response, caller: Writer, house: TheHouse) -> Video:
    """A video anew with another prompt; `video` is a file, or {"id"} of a finished one."""
    return await _taken("POST /v1/videos/edits", sources.edit, request, response, caller, house)


@router.post("/extensions", status_code=202, openapi_extra=EDIT_BODY)
async def extend(request: Request, response: Response, caller: Writer, house: TheHouse) -> Video:
    """A video, and `seconds` more; `video` as for edits."""
    name, order = "POST /v1/videos/extensions", sources.extension
    return await _taken(name, order, request, response, caller, house)


@router.post("/{video_id}/remix", status_code=202, openapi_extra=EDIT_BODY)
async def remix(
    video_id: str, request: Request, response: Response, caller: Writer, house: TheHouse
) -> Video:
    """One's own video with another prompt; what is not given is as it was."""
    name, order = "POST /v1/videos/{video_id}/remix", partial(sources.remix, video_id)
    return await _taken(name, order, request, response, caller, house)


async def _taken(
    name: str, order_of: OrderOf, request: Request, response: Response, caller: Caller, house: House
) -> Video:
    """What `accept` does for a video that begins with none."""
    with span(name, request.headers.get("traceparent", "")):
        raw = await read_body(request, house.outward)
        order = await run_in_threadpool(order_of, raw, request.headers, caller, house)
        found = await place(order, caller, house)
        note(**named(ref_of(caller.tenant, found.video.id)))
    response.headers.update(found.headers)
    return found.video


@router.post("/sync", openapi_extra=BODY, response_class=Response)
async def sync(
    request: Request,
    caller: Writer,
    house: TheHouse,
    prefer: Annotated[str, Header(max_length=100)] = "",
) -> Response:
    """POST /v1/videos that waits for the end and answers with the mp4; for as long as `Prefer:
    wait=SECONDS` says, 300 at most. It goes on after a 504, whose `location` is where to ask."""
    house.events.check_room()
    with span("POST /v1/videos/sync", request.headers.get("traceparent", "")):
        found = await accept(
            await read_body(request, house.outward), request.headers, caller, house
        )
        note(**named(ref_of(caller.tenant, found.video.id)))
    await request.state.body.leave()  # the video takes longer than its pictures need room
    wish = _WAIT.search(prefer)
    limit_s = min(float(wish[1]), SYNC_LIMIT_S) if wish else SYNC_LIMIT_S
    await _until_over(found.video.id, request, limit_s, caller, house)
    answer = await run_in_threadpool(_finished, found.video.id, caller, house)
    answer.headers.update(found.headers | {"x-video-id": found.video.id})
    return answer


async def _until_over(
    video_id: str, request: Request, limit_s: float, caller: Caller, house: House
) -> None:
    """Until the job's end, `limit_s`, or the client's leaving; costs no thread."""
    ref = ref_of(caller.tenant, video_id)
    heard = asyncio.create_task(_listen(ref, house))
    left = asyncio.create_task(_hang_up(request))
    try:
        await asyncio.wait({heard, left}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (heard, left):
            task.cancel()
        await asyncio.gather(heard, left, return_exceptions=True)


async def _listen(ref: str, house: House) -> None:
    async def is_over(last: tuple[int, int]) -> bool:
        return (await run_in_threadpool(house.ledger.read, ref)).ended

    async for _ in house.events.listen(ref, parse_id("0-0", "after"), is_over):
        pass


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _finished(video_id: str, caller: Caller, house: House) -> Response:
    job = house.ledger.read(ref_of(caller.tenant, video_id))
    if not job.ended:
        raise StillRunning(f"The video {video_id} is not finished yet.", video_id)
    if job.state == "failed":
        raise VideoFailed(f"The video failed: {job.text('error_message')}", video_id)
    return send(house, job.result["video"], video_id, Asked())
