"""/v1/videos: create, retrieve, list, cancel, delete."""

from collections.abc import Mapping
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from service import views
from service.accept import accept
from service.deps import Reader, TheHouse, Writer
from service.form import read_body
from service.logs import named
from service.pages import edges
from service.refs import ref_of
from service.removal import remove_video
from service.schemas import CreateVideo, Video, VideoDeleted, VideoPage
from service.traces import note, span

router = APIRouter(prefix="/v1/videos", tags=["videos"])

FORM = {"schema": {**CreateVideo.model_json_schema(), "title": "CreateVideo"}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": FORM, "application/json": FORM},
    }
}
POLL_MS = 500


@router.post("", status_code=202, response_model=Video, openapi_extra=BODY)
async def create(request: Request, caller: Writer, house: TheHouse) -> Response:
    """Accept a job: check everything, store the pictures, then the record; only then answer."""
    with span("POST /v1/videos", request.headers.get("traceparent", "")):
        raw = await read_body(request, house.outward)
        found = await accept(raw, request.headers, caller, house)
        note(**named(ref_of(caller.tenant, found.video.id)))
    return answer(found.video, 202, found.headers)


@router.get("")
def listing(
    caller: Reader,
    house: TheHouse,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    """Videos by time of creation; the next page begins `after` the last id."""
    last = after and ref_of(caller.tenant, after)
    jobs, more = house.ledger.page(caller.tenant, last, limit, order == "desc")
    data = [views.video(job) for job in jobs]
    return VideoPage(data=data, has_more=more, **edges(data))


@router.get("/{video_id}", response_model=Video)
async def retrieve(video_id: str, caller: Reader, house: TheHouse) -> Response:
    """How far a video is. A failed one is 200 with `error`, so that SDKs do not retry."""
    job = await house.front.read(ref_of(caller.tenant, video_id))
    headers = {} if job.ended else {"openai-poll-after-ms": str(POLL_MS)}
    return answer(views.video(job), 200, headers)


def answer(video: Video, status: int, headers: Mapping[str, str]) -> Response:
    """What FastAPI would make of it, which checks each answer a second time, at its own cost."""
    return Response(video.model_dump_json(), status, headers, "application/json")


@router.post("/{video_id}/cancel")
def cancel(video_id: str, caller: Writer, house: TheHouse) -> Video:
    """Stop a job: at once if it waits, within a step if it runs. One that has ended stays so."""
    ref = ref_of(caller.tenant, video_id)
    house.ledger.cancel(ref)
    job = house.ledger.read(ref)
    if job.ended:
        house.limits.settle(ref, job.spent_s)
    return views.video(job)


@router.delete("/{video_id}")
def delete(video_id: str, caller: Writer, house: TheHouse) -> VideoDeleted:
    """Forget a video and its pictures; a running job is stopped within a step."""
    remove_video(ref_of(caller.tenant, video_id), caller, house)
    return VideoDeleted(id=video_id)
