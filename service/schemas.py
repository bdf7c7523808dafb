"""What may stand in a request and what stands in an answer. `CreateVideo.to_spec` is the only
way from the wire to the engine's Spec.
"""

import difflib
import math
import re
import secrets
import unicodedata
from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from engine.errors import SpecError
from engine.presets import Preset
from engine.spec import Guidance, Spec, Wish, frames_of
from service.aliases import translated
from service.errors import RequestError

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,1000}", re.ASCII)


def _whole(value: object) -> int:
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("whole", "must be a whole number such as 17")
    if abs(value) > 10**18:
        raise PydanticCustomError("whole", "must be a whole number of sensible size")
    return value


def _real(value: object) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (ValueError, OverflowError) as error:
        raise PydanticCustomError("real", "must be a number such as 2.5") from error
    return number


def _normal(value: object) -> object:
    """One spelling per letter, so that é is é in the prompt and in the name."""
    return unicodedata.normalize("NFC", value) if isinstance(value, str) else value


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_real)]
Text = Annotated[str, BeforeValidator(_normal)]


class Closed(BaseModel):
    """Fields of a request: those and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Raises RequestError for the first field that is wrong, by name."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _translate(error.errors()[0], cls) from error


class Consent(Closed):
    """Why a person's photos may be used; it goes into the audit chain (`service.audit`)."""

    basis: str = Field(description="self, consent, licence, fictional or other")
    statement: str = Field("", description="In words, up to 500 characters")
    by: str | None = Field(None, description="Who says so; default: the key's id")


class SubjectIn(Closed):
    """One subject: the name that the prompt calls with an at sign, and its picture or its id."""

    name: Text | None = Field(
        None, description="A letter, then up to 31 letters, digits or _; of one by id: its own"
    )
    image: str | None = Field(
        None,
        description="multipart: the file name of an uploaded `images` part;"
        " JSON: the picture itself as base64 or data: address",
    )
    id: str | None = Field(None, description="One that is kept, see POST /v1/subjects")
    consent: Consent | None = Field(None, description="For a picture; one that is kept has its own")


class GuidanceIn(Closed):
    """How hard the conditions pull; see engine.spec.Guidance."""

    mode: Literal["single", "dual"] | None = None
    scale: Real | None = None
    image_scale: Real | None = None
    text_scale: Real | None = None
    subject_scale: Real | None = None
    identity_scale: Real | None = None
    interval: tuple[Real, Real] | None = Field(None, description="Times when the conditions pull")


def _scale_or_object(value: object) -> object:
    return {"scale": value} if isinstance(value, int | float | str) else value


class CreateVideo(Closed):
    """The fields of POST /v1/videos, apart from the pictures."""

    prompt: Text = Field(description='What happens, e.g. "@anna waves at @bob"')
    subjects: list[SubjectIn] | None = None
    size: str | None = Field(None, description="WIDTHxHEIGHT in px, e.g. 96x64")
    seconds: Real | None = Field(None, description="Length; or give num_frames")
    num_frames: Whole | None = Field(None, description="Length in frames, 4k+1")
    fps: Whole | None = None
    seed: Whole | None = Field(None, description="Same seed, same video; default: drawn and told")
    steps: Whole | None = Field(None, description="Denoising steps")
    guidance: Annotated[GuidanceIn | None, BeforeValidator(_scale_or_object)] = None
    negative_prompt: Text | None = None
    model: str | None = Field(None, description="Of GET /v1/models; default: the first")
    solver: Literal["euler", "unipc"] | None = None
    tier: Literal["exact", "fast"] | None = Field(
        None, description="fast: similar steps are skipped, at a loss; default: exact"
    )
    n: Whole | None = Field(None, description="Candidates made, of which the likest is given")
    min_identity: Real | None = Field(
        None, description="As like the subjects must be, 0 to 1, or others are made"
    )
    max_reseeds: Whole | None = Field(None, description="How many others at most")
    priority: Literal["low", "normal", "high"] | None = Field(
        None, description="Among your own jobs; default: normal"
    )
    webhook_url: str | None = Field(None, description="Where the video's end is posted")

    @classmethod
    def parse(cls, fields: dict[str, Any]) -> Self:
        """Raises RequestError for the first field that is wrong, by name."""
        return super().parse(translated(fields))

    def to_spec(
        self, preset: Preset, names: tuple[str, ...], models: Collection[str] = ()
    ) -> Spec:
        """The validated Spec. models: adapters that are served besides the preset's own model.

        Raises:
            RequestError: a value that this model cannot serve, by the name it had on the wire.
        """
        if self.model not in {None, preset.name, *models}:
            served = ", ".join(map(repr, (preset.name, *sorted(models))))
            raise RequestError(
                f"model: {self.model!r:.80} is not served here; use {served}.",
                param="model",
                code="model_not_found",
            )
        try:
            given = self._given(preset)
            spec = Spec.of(preset, self.prompt, names, **given)
            spec.validate(preset.limits)
        except SpecError as error:
            raise self._on_the_wire(error) from error
        return spec

    def to_wish(self, num_subjects: int) -> Wish:
        """What is asked beyond one video. Raises RequestError."""
        asked = {"n": self.n, "min_identity": self.min_identity, "max_reseeds": self.max_reseeds}
        wish = Wish(**{name: value for name, value in asked.items() if value is not None})  # type: ignore[arg-type]
        try:
            wish.validate(num_subjects)
        except SpecError as error:
            raise self._on_the_wire(error) from error
        return wish

    def _given(self, preset: Preset) -> dict[str, Any]:
        """Spec fields that this request sets."""
        given: dict[str, Any] = {}
        plain = ("fps", "seed", "steps", "num_frames", "negative_prompt", "solver", "tier")
        for name in plain:
            if (value := getattr(self, name)) is not None:
                given[name] = value
        if self.seed is None:
            given["seed"] = secrets.randbelow(2**32)
        if self.size is not None:
            given["width"], given["height"] = _sides(self.size)
        if self.seconds is not None:
            given["num_frames"] = self._frames(given.get("fps", preset.defaults.fps), preset)
        if self.guidance is not None:
            scales = self.guidance.model_dump(exclude_none=True)
            given["guidance"] = replace(Guidance.assumed(preset), **scales)
        return given

    def _frames(self, fps: int, preset: Preset) -> int:
        """`seconds` as frames: the nearest number of the form 4k+1."""
        limits = preset.limits
        if self.num_frames is not None:
            raise SpecError("seconds", "give seconds or num_frames, not both")
        if not limits.min_fps <= fps <= limits.max_fps:
            raise SpecError("fps", f"must lie between {limits.min_fps} and {limits.max_fps}")
        assert self.seconds is not None
        return frames_of(self.seconds, fps, limits)

    def _on_the_wire(self, error: SpecError) -> RequestError:
        """A Spec's width and height came as `size`."""
        if error.field in {"width", "height"}:
            return RequestError(f"size: {error.field} {error.message}.", param="size")
        return RequestError(f"{error}.", param=error.field)


def _sides(size: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise SpecError("size", f"must be WIDTHxHEIGHT such as 96x64, got {size!r:.40}")
    return int(match[1]), int(match[2])


def _translate(error: ErrorDetails, model: type[BaseModel]) -> RequestError:
    """Pydantic's error as a sentence that says what would be right."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    param = (path.lstrip(".")[:80] or "''") if error["loc"] else None
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return RequestError(
            f"{param}: unknown field.{_nearest(error['loc'], model)}",
            param,
            "unknown_field",
        )
    if kind == "missing":
        return RequestError(f"{param}: is required.", param, "missing_field")
    if kind == "literal_error":
        return RequestError(f"{param}: must be {context['expected']}.", param)
    texts = {
        "string_type": "must be text",
        "list_type": 'must be a list such as [{"name": "anna", "image": "anna.png"}]',
        "model_type": "must be a JSON object",
    }
    return RequestError(f"{param}: {texts.get(kind, error['msg'])}.", param)


def _nearest(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """What was perhaps meant, of the fields that there are at that place."""
    known = [*model.model_fields, "images", "input_reference"]
    for part in loc[:-1]:
        if isinstance(part, str):
            model = _within(model.model_fields[part].annotation) or model
            known = [*model.model_fields]
    near = difflib.get_close_matches(str(loc[-1]), known, 1)
    return f" Did you mean {near[0]!r}?" if near else f" Known fields: {', '.join(known)}."


def _within(annotation: Any) -> type[BaseModel] | None:
    """The model that a field holds, or a list of which it holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_within, get_args(annotation))), None)


class VideoIn(Closed):
    """A finished video of the caller's."""

    id: str


class EditVideo(CreateVideo):
    """The fields of a request that begins with a video, apart from pictures and the video as a
    file: POST /v1/videos/edits, /v1/videos/extensions and /v1/videos/{id}/remix."""

    video: VideoIn | None = Field(None, description="Or a file part of this name, MP4")
    strength: Real | None = Field(
        None, description="How much is made anew, above 0 and up to 1"
    )


class VideoError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class SubjectOut(BaseModel):
    """A subject of a job; `reference` is the path of its picture as the engine sees it."""

    name: str
    reference: str
    id: str | None = Field(None, description="Of the subject, where it is one that is kept")


class Forwards(BaseModel):
    """How often the model was asked for a velocity, and how often that was computed in full."""

    asked: int
    computed: int


class Identity(BaseModel):
    """How like its subjects a video is; see `engine.likeness` for each figure."""

    overall: float = Field(description="0 to 1: the worst subject's likeness, less for flaws")
    reached: float | None = Field(description="1: as like as a true clip; 0: as a stranger")
    strangers: float = Field(description="Characters per frame that nobody asked for")
    subjects: list[dict[str, Any]] = Field(
        description="Of each: similarity, missing, looks_like, switched, and copy_paste, which is"
        " null with one picture: only a second one tells a copy from a good likeness"
    )


class Candidate(BaseModel):
    """One of several videos made for a request; its files are variants of the content."""

    seed: int
    overall: float
    chosen: bool


class Timings(BaseModel):
    """Seconds spent, as far as known."""

    queued_s: float | None = None
    fetch_s: float | None = None
    encode_s: float | None = None
    denoise_s: float | None = None
    decode_s: float | None = None
    store_s: float | None = None
    total_s: float | None = None


class Video(BaseModel):
    """OpenAI's Video object, and what we add below `error`. Times in s since 1970."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    prompt: str
    remixed_from_video_id: str | None = Field(
        None, description="The video that a remix, an edit or an extension began with, by its id"
    )
    seconds: str
    size: str
    error: VideoError | None = None
    stage: str
    step: int | None = None
    queue_position: int | None = Field(None, description="0: next; null: not waiting")
    eta_s: float | None = Field(None, description="Seconds until it is done, by the last jobs")
    attempts: int
    subjects: list[SubjectOut]
    preview: str | None = Field(None, description="Path of the latest preview picture")
    warnings: list[str]
    timings: Timings
    model_digest: str | None = None
    num_frames: int
    fps: int
    seed: int
    steps: int
    solver: str
    tier: str
    priority: str
    identity: Identity | None = Field(None, description="Once it is made, where it can be told")
    candidates: list[Candidate] = Field(default=[], description="Where several were made")
    frames_sha256: str | None = Field(None, description="Of the frames, before they were marked")
    forwards: Forwards | None = Field(None, description="Once it is made; tier exact: all of them")
    guidance: dict[str, Any]
    negative_prompt: str


class VideoPage(BaseModel):
    """One page of a listing."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoUrl(BaseModel):
    """Where one of a video's files can be read without an API key, until `expires_at` (s since
    1970) or the video's deletion."""

    id: str
    object: Literal["video.url"] = "video.url"
    variant: str
    url: str
    expires_at: int


class VideoDeleted(BaseModel):
    """Answer of DELETE."""

    id: str
    deleted: Literal[True] = True
    object: Literal["video.deleted"] = "video.deleted"
