"""/v1/subjects: people, animals and things that are kept, to be used by id; and OpenAI's
characters, which are subjects made from a video."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from service.accept import attested
from service.auth import Caller
from service.decode_video import Plan, unpack
from service.deps import House, Reader, TheHouse, Writer
from service.errors import NotFound, RequestError
from service.form import Raw, fetched, read_body
from service.intake import picture_of
from service.pages import edges
from service.refs import new_id, ref_of
from service.removal import remove_video
from service.routes.content import AsAsked, send
from service.settings import MAX_PICTURES
from service.subject_schemas import (
    Character,
    CreateCharacter,
    CreateSubject,
    Subject,
    SubjectDeleted,
    SubjectPage,
)
from service.subjects import Subject as Kept
from service.subjects import home

router = APIRouter(tags=["subjects"])

STILLS = 4  # of a character's video
STILL_AREA = 1024 * 1024
FORM = {"schema": {**CreateSubject.model_json_schema(), "title": "CreateSubject"}}
BODY = {"requestBody": {"required": True, "content": dict.fromkeys(
    ("multipart/form-data", "application/json"), FORM)}}  # fmt: skip
FILM = {"schema": {**CreateCharacter.model_json_schema(), "title": "CreateCharacter"}}
FILM_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": FILM}}}


@router.post("/v1/subjects", status_code=201, openapi_extra=BODY)
async def create(request: Request, caller: Writer, house: TheHouse) -> Subject:
    """Keep a name and one to eight photos of one subject, in `images`."""
    raw = await read_body(request, house.outward)
    raw.pictures = await fetched(raw.pictures, house.outward)
    return _shown(await house.turns.run(caller.tenant, _create, raw, caller, house))


def _create(raw: Raw, caller: Caller, house: House) -> Kept:
    body = CreateSubject.parse(raw.fields)
    if raw.film is not None or not 1 <= len(raw.pictures) <= MAX_PICTURES:
        count = f"got {len(raw.pictures)}"
        raise RequestError(f"images: send 1 to {MAX_PICTURES} photos, {count}.", "images")
    ref = _counted(caller, house)
    photos = house.intake.clean(raw.pictures, caller.tenant)
    return _kept(ref, body.name, photos, house, attested(ref, body.consent, caller, house))


def _counted(caller: Caller, house: House) -> str:
    """A new subject's ref, once it has counted as a request. Raises RateLimited."""
    house.durable.require()
    ref = ref_of(caller.tenant, new_id("subj"))
    house.limits.reserve(ref, house.preset.name, 0.0)
    house.limits.release(ref)
    return ref


def _kept(ref: str, name: str, photos: list[bytes], house: House, consent: str = "") -> Kept:
    try:
        keys = tuple(house.blobs.put(home(ref), png, ".png").key for png in photos)
        return house.subjects.add(ref, name, keys, consent)
    except BaseException:
        house.blobs.delete(home(ref))
        raise


@router.get("/v1/subjects")
def listing(
    caller: Reader,
    house: TheHouse,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> SubjectPage:
    """Subjects by time of creation; the next page begins `after` the last id."""
    last = after and ref_of(caller.tenant, after)
    found, more = house.subjects.page(caller.tenant, last, limit, order == "desc")
    data = [_shown(one) for one in found]
    return SubjectPage(data=data, has_more=more, **edges(data))


@router.get("/v1/subjects/{subject_id}")
def retrieve(subject_id: str, caller: Reader, house: TheHouse) -> Subject:
    """One of them."""
    return _shown(house.subjects.read(ref_of(caller.tenant, subject_id)))


@router.api_route("/v1/subjects/{subject_id}/images/{number}", methods=["GET", "HEAD"])
def image(
    subject_id: str, number: int, asked: AsAsked, caller: Reader, house: TheHouse
) -> Response:
    """A photo, as it was cleaned; the first is 0."""
    found = house.subjects.read(ref_of(caller.tenant, subject_id))
    if not 0 <= number < len(found.images):
        raise NotFound(f"The subject has {len(found.images)} images, from 0 on.")
    return send(house, found.images[number], f"{subject_id}-{number}", asked)


@router.delete("/v1/subjects/{subject_id}")
def delete(
    subject_id: str, caller: Writer, house: TheHouse, cascade: bool = False
) -> SubjectDeleted:
    """Forget a subject and its photos; with `cascade`, the videos that were made of it too. Others
    keep copies of their own until they are deleted. The audit chain keeps a receipt."""
    ref = ref_of(caller.tenant, subject_id)
    house.subjects.read(ref)
    videos = _videos_of(subject_id, caller.tenant, house) if cascade else []
    for video_id in videos:
        remove_video(ref_of(caller.tenant, video_id), caller, house)
    house.audit.append(caller.tenant, caller.key_id, "subject.deleted", ref)
    house.blobs.delete(home(ref))  # first: as long as there is a record, it can be asked for again
    house.subjects.delete(ref)
    return SubjectDeleted(id=subject_id, videos_deleted=videos)


def _videos_of(subject_id: str, tenant: str, house: House) -> list[str]:
    """And what was made of them in turn. By looking at all, the oldest first: an index would be one
    more trace to remove."""
    found: dict[str, None] = {}
    last: str | None = None
    more = True
    while more:
        jobs, more = house.ledger.page(tenant, last, 100, False)
        last = jobs[-1].ref if jobs else None
        for job in jobs:
            shown = any(one.get("subject") == subject_id for one in job.request["references"])
            if shown or job.request.get("remixed_from") in found:
                found[job.id] = None
    return [*found]


@router.post("/v1/videos/characters", status_code=201, openapi_extra=FILM_BODY)
async def create_character(request: Request, caller: Writer, house: TheHouse) -> Character:
    """A subject whose photos are frames of a video, file part `video`."""
    raw = await read_body(request)
    return _as_character(
        await house.turns.run(caller.tenant, _create_character, raw, caller, house)
    )


def _create_character(raw: Raw, caller: Caller, house: House) -> Kept:
    body = CreateCharacter.parse(raw.fields)
    if raw.film is None or raw.pictures:
        raise RequestError("video: send one video file and no pictures.", "video")
    ref = _counted(caller, house)
    plan = Plan(fps=0, stills=STILLS, most=STILLS, area=STILL_AREA)
    clip = unpack(house.intake.film(raw.film, plan, caller.tenant))
    size = clip.height * clip.width * 3
    photos = [
        picture_of(clip.rgb[at : at + size], clip.width, clip.height)
        for at in range(0, len(clip.rgb), size)
    ]
    basis = attested(ref, body.consent, caller, house)
    return _kept(ref, body.name, list(dict.fromkeys(photos)), house, basis)


@router.get("/v1/videos/characters/{character_id}")
def character(character_id: str, caller: Reader, house: TheHouse) -> Character:
    """Any subject, in OpenAI's words."""
    return _as_character(house.subjects.read(ref_of(caller.tenant, character_id)))


def _as_character(found: Kept) -> Character:
    return Character(id=found.id, created_at=found.created_ms // 1000, name=found.name)


def _shown(found: Kept) -> Subject:
    paths = [f"/v1/subjects/{found.id}/images/{number}" for number in range(len(found.images))]
    return Subject(
        id=found.id,
        name=found.name,
        created_at=found.created_ms // 1000,
        images=paths,
        consent=found.consent or None,
    )
