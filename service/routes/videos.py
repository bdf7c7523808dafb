"""/v1/videos: create, retrieve, list, cancel, delete."""

import uuid
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from service import views
from service.binding import Bound, bind
from service.deps import House, TheHouse
from service.errors import RequestError, ServiceError
from service.form import Raw, read_body
from service.roster import tiers_of
from service.schemas import CreateVideo, Video, VideoDeleted, VideoPage

router = APIRouter(prefix="/v1/videos", tags=["videos"])

FORM = {"schema": {**CreateVideo.model_json_schema(), "title": "CreateVideo"}}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": FORM, "application/json": FORM},
    }
}
POLL_MS = 500


@router.post("", status_code=202, openapi_extra=BODY)
async def create(request: Request, response: Response, house: TheHouse) -> Video:
    """Accept a job: check everything, store the pictures, then the record; only then answer."""
    raw = await read_body(request)
    video = await run_in_threadpool(accept, raw, house)
    response.headers["location"] = f"/v1/videos/{video.id}"
    return video


def accept(raw: Raw, house: House) -> Video:
    """From a body taken apart to a job in the queue.

    Raises:
        RequestError: before anything is stored.
        ServiceError: the store or the ledger refused; what was stored is removed.
    """
    body = CreateVideo.parse(raw.fields)
    bound = bind(body.prompt, body.subjects, raw.pictures, house.preset.limits.max_subjects)
    spec = body.to_spec(house.preset, tuple(one.name for one in bound))
    pictures = house.intake.clean([one.upload for one in bound])
    house.ledger.ping()
    _check_tier(spec.tier, house)
    job_id = f"video_{uuid.uuid4().hex}"
    try:
        request = {
            "spec": spec.to_json(),
            "model": house.preset.name,
            "references": _store(job_id, bound, pictures, house),
            "warnings": views.warnings_for(spec, house.preset.name),
        }
        house.ledger.submit(job_id, request)
    except ServiceError:
        house.blobs.delete(f"videos/{job_id}")
        raise
    house.doorbell.ring(job_id)
    return views.video(house.ledger.read(job_id))


def _check_tier(tier: str, house: House) -> None:
    """Raises RequestError where workers have said what they serve, and none serves this."""
    served = tiers_of(house.roster.present(), house.preset.limits.tiers)
    if tier not in served:
        raise RequestError(f"tier: no worker serves {tier!r} now; use {', '.join(served)}.", "tier")


def _store(
    job_id: str, bound: list[Bound], pictures: list[bytes], house: House
) -> list[dict[str, str]]:
    """References as the record keeps them: name and key."""
    keys = [house.blobs.put(f"videos/{job_id}/in", png, ".png").key for png in pictures]
    return [{"name": one.name, "key": key} for one, key in zip(bound, keys, strict=True)]


@router.get("")
def listing(
    house: TheHouse,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> VideoPage:
    """Videos by time of creation; the next page begins `after` the last id."""
    jobs, more = house.ledger.page(after, limit, order == "desc")
    data = [views.video(job) for job in jobs]
    return VideoPage(
        data=data,
        first_id=data[0].id if data else None,
        last_id=data[-1].id if data else None,
        has_more=more,
    )


@router.get("/{video_id}")
def retrieve(video_id: str, response: Response, house: TheHouse) -> Video:
    """How far a video is. A failed one is 200 with `error`, so that SDKs do not retry."""
    job = house.ledger.read(video_id)
    if not job.ended:
        response.headers["openai-poll-after-ms"] = str(POLL_MS)
    return views.video(job)


@router.post("/{video_id}/cancel")
def cancel(video_id: str, house: TheHouse) -> Video:
    """Stop a job: at once if it waits, within a step if it runs. One that has ended stays so."""
    house.ledger.cancel(video_id)
    return views.video(house.ledger.read(video_id))


@router.delete("/{video_id}")
def delete(video_id: str, house: TheHouse) -> VideoDeleted:
    """Forget a video and its pictures; a running job is stopped within a step.

    A worker that has it in hand may still write a file; the reaper sweeps those.
    """
    state = house.ledger.delete(video_id)
    house.blobs.delete(f"videos/{video_id}")
    if state not in {"running", "deleted"}:
        house.ledger.bury(video_id)
    return VideoDeleted(id=video_id)
