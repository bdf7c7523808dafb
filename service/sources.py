"""Requests that begin with a video: an edit, a remix, an extension.

The source is a finished video of the caller's, or a file. It is decoded in a limited child, once
its cost is reserved, and only its plain frames are kept, among the new job's own blobs, so that it
may be deleted meanwhile. `workers.source` reads what is written here under "edit".

    edit       the whole source, made anew as far as `strength` says, with a new prompt
    remix      the same of one's own video, from further back: all that is not given is as it was
    extension  the source's last second is what the new frames follow; both are given as one
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from engine.errors import SpecError
from engine.presets import Limits
from engine.spec import Spec
from service.accept import Order, bound_of, full_terms, named_model
from service.auth import Caller
from service.binding import Bound, calls
from service.blobs import get
from service.decode_video import MAX_SECONDS, Clip, Plan, unpack
from service.deps import House
from service.errors import NotReady, RequestError
from service.form import Raw
from service.intake import Upload
from service.jobs import Job
from service.refs import home, ref_of, tenant_of
from service.schemas import EditVideo, GuidanceIn

# Looked at on the miniature: at 0.6 the motion stays and the picture is new, at 0.9 the motion
# follows the new prompt; between them the two motions mix.
EDIT_STRENGTH, REMIX_STRENGTH = 0.6, 0.9
GRID = 4  # a video has 4k + 1 frames
KEEP_S = 1.0  # of the source, for what follows it


@dataclass(frozen=True)
class Film:
    """A source: a finished job of the caller's, or a file."""

    job: Job | None = None
    upload: Upload | None = None

    @property
    def spec(self) -> Spec | None:
        """The job's."""
        return None if self.job is None else Spec.from_json(self.job.request["spec"])

    @property
    def told(self) -> dict[str, str]:
        """For the record: which video it is, of a job's."""
        return {} if self.job is None else {"remixed_from": self.job.id}

    def frames(self, fps: int) -> int | None:
        """How many it has at `fps`, as far as can be known without looking at it."""
        if self.job is None or self.spec is None:
            return None
        own: int = self.job.request.get("frames", self.spec.num_frames)
        return max(1, -(-own * fps // self.spec.fps))

    def data(self, house: House) -> Upload:
        """Its bytes. Raises BlobMissing."""
        if self.upload is not None:
            return self.upload
        assert self.job is not None
        return Upload("video", self.job.id, get(house.blobs, self.job.result["video"]))


def edit(raw: Raw, headers: Mapping[str, str], caller: Caller, house: House) -> Order:
    """An order of POST /v1/videos/edits. Raises RequestError, NotFound or NotReady."""
    raw.what = "edit"
    body = EditVideo.parse(raw.fields)
    film = _film(body, raw, caller, house)
    return _edit(body, film, EDIT_STRENGTH, (raw, headers, caller, house))


def remix(
    video_id: str, raw: Raw, headers: Mapping[str, str], caller: Caller, house: House
) -> Order:
    """An order of POST /v1/videos/{id}/remix. Raises RequestError, NotFound or NotReady."""
    raw.what = f"remix {video_id}"
    film = Film(_finished(video_id, caller, house))
    body = EditVideo.parse(raw.fields)
    if body.video is not None or raw.film is not None:
        raise RequestError("video: is the one whose id is in the path; leave it out.", "video")
    assert film.spec is not None and film.job is not None
    fields = {"model": film.job.request["model"], **_fields(film.spec)}
    as_before = {name: value for name, value in fields.items() if getattr(body, name) is None}
    body = body.model_copy(update=as_before)
    return _edit(body, film, REMIX_STRENGTH, (raw, headers, caller, house))


def extension(raw: Raw, headers: Mapping[str, str], caller: Caller, house: House) -> Order:
    """An order of POST /v1/videos/extensions. Raises RequestError, NotFound or NotReady."""
    raw.what = "extension"
    body = EditVideo.parse(raw.fields)
    if (seconds := body.seconds) is None:
        raise RequestError("seconds: is required, the length to add.", "seconds", "missing_field")
    _refuse(body, "strength", "num_frames")
    film = _film(body, raw, caller, house)
    body, fps = _shaped(body, film, house)
    new = _added(seconds, fps, house.preset.limits)
    room = house.preset.limits.max_frames - new
    known = _on_grid(min(film.frames(fps) or room, round(KEEP_S * fps) + GRID - 1, room))
    body = body.model_copy(update={"seconds": None, "num_frames": known + new})
    order, plan = _order(body, film, (raw, headers, caller, house))

    def source(ref: str) -> tuple[Spec, dict[str, Any]]:
        clip, key = _stored(film, replace(plan, most=MAX_SECONDS * fps, whole=True), ref, house)
        keep = min(known, _on_grid(clip.frames))
        spec = _fitting(replace(order.spec, num_frames=keep + new), clip, house)
        told = {"key": key, "strength": 1.0, "keep_frames": keep}
        return spec, {"edit": told, "frames": clip.frames + new, **film.told}

    return replace(order, source=source)


def _added(seconds: float, fps: int, limits: Limits) -> int:
    """The frames to make beyond those that are known, of which there is one at least. Raises
    RequestError."""
    most = limits.max_frames - 1
    new = GRID * max(1, round(seconds * fps / GRID)) if 0 < seconds <= most / fps else 0
    if not GRID <= new <= most:
        raise RequestError(f"seconds: above 0 and at most {most / fps:g} at a time.", "seconds")
    return new


Asked = tuple[Raw, Mapping[str, str], Caller, House]


def _edit(body: EditVideo, film: Film, strength: float, asked: Asked) -> Order:
    house = asked[-1]
    _refuse(body, "seconds", "num_frames")
    strength = strength if body.strength is None else body.strength
    if not 0 < strength <= 1:
        raise RequestError(f"strength: above 0 and at most 1, got {strength:g}.", "strength")
    body, fps = _shaped(body, film, house)
    limits = house.preset.limits
    most = _on_grid(min(film.frames(fps) or limits.max_frames, limits.max_frames))
    body = body.model_copy(update={"num_frames": max(most, limits.min_frames)})
    order, plan = _order(body, film, asked)

    def source(ref: str) -> tuple[Spec, dict[str, Any]]:
        clip, key = _stored(film, replace(plan, most=limits.max_frames), ref, house)
        if clip.frames < limits.min_frames:
            raise RequestError(
                f"video: has {clip.frames} frames at {fps} a second, at least"
                f" {limits.min_frames} are needed.",
                "video",
                "invalid_video",
            )
        spec = _fitting(replace(order.spec, num_frames=_on_grid(clip.frames)), clip, house)
        told = {"key": key, "strength": strength, "keep_frames": 0}
        return spec, {"edit": told, **film.told}

    return replace(order, source=source)


def _order(body: EditVideo, film: Film, asked: Asked) -> tuple[Order, Plan]:
    """The order but for its source, and how that is decoded."""
    raw, headers, caller, house = asked
    bound = bound_of(body, raw, caller, house)
    if not bound and film.job is not None:
        bound = _cast(body.prompt, film.job)
    model, spec = named_model(body, bound, house)
    terms = full_terms(body, spec, raw, headers, house)
    limits = house.preset.limits
    plan = Plan(
        fps=spec.fps,
        most=1,
        size=(spec.width, spec.height) if body.size else None,
        area=spec.width * spec.height,
        multiple=limits.size_multiple,
        low=limits.min_side,
        high=limits.max_side,
    )
    return Order(spec, body.to_wish(len(bound)), bound, terms, model), plan


def _film(body: EditVideo, raw: Raw, caller: Caller, house: House) -> Film:
    if (body.video is None) == (raw.film is None):
        raise RequestError(
            'video: send a file part of this name, or {"id": …} of a finished video.', "video"
        )
    if body.video is None:
        return Film(upload=raw.film)
    return Film(_finished(body.video.id, caller, house))


def _finished(video_id: str, caller: Caller, house: House) -> Job:
    job = house.ledger.read(ref_of(caller.tenant, video_id))
    if job.state != "completed":
        raise NotReady(f"The video {video_id} is {job.state}; it can be used once it is completed.")
    return job


def _shaped(body: EditVideo, film: Film, house: House) -> tuple[EditVideo, int]:
    """The size and the frames a second of one's own video stay, unless others are given."""
    if film.spec is not None:
        given = {"size": f"{film.spec.width}x{film.spec.height}", "fps": film.spec.fps}
        absent = {name: value for name, value in given.items() if getattr(body, name) is None}
        body = body.model_copy(update=absent)
    limits, fps = house.preset.limits, body.fps or house.preset.defaults.fps
    if not limits.min_fps <= fps <= limits.max_fps:
        raise RequestError(f"fps: must lie between {limits.min_fps} and {limits.max_fps}.", "fps")
    return body, fps


def _cast(prompt: str, job: Job) -> list[Bound]:
    """Those of a video's subjects that the new prompt calls, with all their photos."""
    more = job.request.get("more", [])
    return [
        Bound(
            one["name"],
            photos=(one["key"], *(m["key"] for m in more if m["name"] == one["name"])),
            subject=one.get("subject", ""),
        )
        for one in job.request["references"]
        if calls(prompt, one["name"])
    ]


def _fields(spec: Spec) -> dict[str, Any]:
    """A spec as a request's fields, but for the prompt and what the source says by itself."""
    names = ("seed", "steps", "solver", "tier", "negative_prompt")
    scales = asdict(spec.guidance)
    guidance = GuidanceIn(**{name: scales[name] for name in GuidanceIn.model_fields})
    return {**{name: getattr(spec, name) for name in names}, "guidance": guidance}


def _stored(film: Film, plan: Plan, ref: str, house: House) -> tuple[Clip, str]:
    packed = house.intake.film(film.data(house), plan, tenant_of(ref))
    return unpack(packed), house.blobs.put(f"{home(ref)}/in", packed, ".frames").key


def _fitting(spec: Spec, clip: Clip, house: House) -> Spec:
    """The spec at the clip's size. Raises RequestError when the model cannot make it."""
    spec = replace(spec, width=clip.width, height=clip.height)
    try:
        spec.validate(house.preset.limits)
    except SpecError as error:
        raise RequestError(f"video: {error}.", "video", "invalid_video") from error
    return spec


def _on_grid(frames: int) -> int:
    return frames - (frames - 1) % GRID


def _refuse(body: EditVideo, *names: str) -> None:
    for name in names:
        if getattr(body, name) is not None:
            raise RequestError(f"{name}: follows from the video here; leave it out.", name)
