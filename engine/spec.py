"""What may be asked: a Spec, its Guidance, its References, a Wish. Importable without torch.

A subject is bound to the prompt by its name with an at sign: "@anna waves to @bob". The encoders
read the prompt without the signs; `text_of` gives that text and where each subject stands in it.
"""

import hashlib
import html
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ftfy

from engine.errors import SpecError
from engine.presets import Limits, Preset

if TYPE_CHECKING:
    from PIL.Image import Image

Span = tuple[int, int]

SOLVERS = ("euler", "unipc")
GUIDANCE_MODES = ("single", "dual")
TIERS = ("exact", "fast")  # see `engine.tiers`
MAX_SEED = 2**53 - 1  # exact in JSON, in Lua and in JavaScript
MAX_CANDIDATES = 4
MAX_RESEEDS = 3
# Near white, as references of Wan-family models are padded, but no highlight.
PAD_GREY = 235

_NAME = re.compile(r"[^\W\d_]\w{0,31}")
# An at sign after a letter or digit is an e-mail address, not a mention.
_MENTION = re.compile(r"(?<!\w)@([^\W\d_]\w*)")


@dataclass(frozen=True)
class Guidance:
    """How hard the conditions pull.

    single: v = u + scale * (full - u), two forwards a step (ID-Crafter section 4.1, 2.5).
        subject_scale > 0 adds subject_scale * (full - text), where `text` is the prompt without
        subjects, for a third forward: how much harder the subjects pull than the words. (The
        terms are InstructPix2Pix's, equation 3, in the other order: words first.)
    dual: v = u + image_scale * (image - u) + text_scale * (full - image), three forwards
        (Phantom `subject2video.py`, 5.0 and 7.5).
    identity_scale > 0 also moves the guessed clip, in either mode, towards who a reader sees in the
        references (`engine.likeness_guidance`), so far at each step, in latents' units.
    Outside `interval` (times, see `engine.flow`) only the full condition is evaluated.
    """

    mode: str = "single"
    scale: float = 2.5
    image_scale: float = 5.0
    text_scale: float = 7.5
    interval: tuple[float, float] = (0.0, 1.0)
    subject_scale: float = 0.0
    identity_scale: float = 0.0

    @classmethod
    def assumed(cls, preset: Preset, reads: bool = True) -> "Guidance":
        """What a request gets that does not say. reads: whether there are readers to ask, which an
        engine that was put together while training has not."""
        usual = preset.defaults
        scale = usual.identity_scale if reads else 0.0
        return cls(usual.guidance_mode, usual.guidance, identity_scale=scale)

    @property
    def weighed(self) -> tuple[str, ...]:
        """The fields of `engine.sample.Conditions` that have a weight inside the interval, in
        order."""
        if self.mode == "dual":
            return ("full", "empty", "image")
        empty, text = self.scale != 1.0, self.subject_scale != 0.0
        return ("full", *(("empty",) if empty else ()), *(("text",) if text else ()))

    @property
    def is_off(self) -> bool:
        """v = full: the other forwards have no weight."""
        return self.weighed == ("full",)

    def covers(self, t: float) -> bool:
        """Whether time `t` lies in the interval, ends included."""
        low, high = self.interval
        return low <= t <= high

    def validate(self, limits: Limits) -> None:
        """Raises SpecError unless every number is finite and within the limits."""
        limit = limits.max_guidance
        check_word("guidance.mode", self.mode, GUIDANCE_MODES)
        for name in ("scale", "image_scale", "text_scale", "subject_scale"):
            _check_real(f"guidance.{name}", getattr(self, name), 0.0, limit)
        self._check_identity_scale(limits.max_identity_scale)
        if self.mode == "dual" and self.subject_scale:
            raise SpecError("guidance.subject_scale", "goes with mode single; dual has image_scale")
        if len(self.interval) != 2:
            raise SpecError("guidance.interval", "must be two times, from and to")
        for bound in self.interval:
            _check_real("guidance.interval", bound, 0.0, 1.0)
        if self.interval[0] > self.interval[1]:
            raise SpecError("guidance.interval", "must run from a smaller time to a larger one")

    def _check_identity_scale(self, limit: float) -> None:
        field = "guidance.identity_scale"
        if limit == 0 and self.identity_scale != 0:
            raise SpecError(field, "must be 0: this model brings nobody who reads identities")
        _check_real(field, self.identity_scale, 0.0, limit)


@dataclass(frozen=True)
class Spec:
    """One request. Sides in px, `names` of the subjects in slot order. `tier` other than "exact"
    skips work at a loss."""

    prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    names: tuple[str, ...] = ()
    negative_prompt: str = ""
    seed: int = 0
    guidance: Guidance = field(default_factory=Guidance)
    solver: str = "euler"
    tier: str = "exact"

    @classmethod
    def of(cls, preset: Preset, prompt: str, names: tuple[str, ...] = (), **given: Any) -> "Spec":
        """A Spec with the preset's defaults for everything not `given`.

        Raises:
            SpecError: when a `given` name is no field of Spec.
        """
        assumed = preset.defaults
        fields: dict[str, Any] = {
            "width": assumed.width,
            "height": assumed.height,
            "num_frames": assumed.num_frames,
            "fps": assumed.fps,
            "steps": assumed.steps,
            "solver": assumed.solver,
            "guidance": Guidance.assumed(preset),
        }
        for name, value in given.items():
            if name not in cls.__dataclass_fields__:
                raise SpecError(name, "is not a field of a request")
            fields[name] = value
        return cls(prompt=prompt, names=tuple(names), **fields)

    def validate(self, limits: Limits) -> None:
        """Raises SpecError, naming the first field that this model cannot serve."""
        _check_text("prompt", self.prompt, limits.max_prompt_chars)
        if not self.prompt.strip():
            raise SpecError("prompt", "must not be empty")
        _check_text("negative_prompt", self.negative_prompt, limits.max_prompt_chars)
        _check_names(self.names, limits.max_subjects)
        text_of(self.prompt, self.names)
        self._check_size(limits)
        _check_whole("fps", self.fps, limits.min_fps, limits.max_fps)
        _check_whole("steps", self.steps, 1, limits.max_steps)
        _check_whole("seed", self.seed, 0, MAX_SEED)
        check_word("solver", self.solver, SOLVERS)
        check_word("tier", self.tier, limits.tiers)
        self.guidance.validate(limits)

    def _check_size(self, limits: Limits) -> None:
        for name in ("width", "height"):
            side = getattr(self, name)
            _check_whole(name, side, limits.min_side, limits.max_side)
            if side % limits.size_multiple:
                raise SpecError(name, f"must be a multiple of {limits.size_multiple}, got {side}")
        if self.width * self.height > limits.max_pixels:
            raise SpecError(
                "width",
                f"{self.width}x{self.height} is more than {limits.max_pixels} pixels a frame",
            )
        _check_whole("num_frames", self.num_frames, limits.min_frames, limits.max_frames)
        if self.num_frames % 4 != 1:
            below = self.num_frames - (self.num_frames - 1) % 4
            raise SpecError(
                "num_frames",
                f"must be one more than a multiple of 4 (such as {below} or {below + 4}),"
                f" got {self.num_frames}",
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a job record; `from_json` is the inverse."""
        return {**vars(self), "guidance": dict(vars(self.guidance))}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Spec":
        """Raises SpecError when a field is unknown or missing."""
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise SpecError(unknown[0], "is not a field of a request")
        fields = dict(values)
        fields["names"] = tuple(fields.get("names", ()))
        guidance = dict(fields.get("guidance", {}))
        guidance["interval"] = tuple(guidance.get("interval", (0.0, 1.0)))
        try:
            fields["guidance"] = Guidance(**guidance)
            return cls(**fields)
        except TypeError as error:
            raise SpecError("request", str(error)) from error


@dataclass(frozen=True)
class Wish:
    """What a job asks beyond one video, see `engine.candidates`.

    n: candidates, of which the likest is given. min_identity: as like as it must be, on the scale
    of `engine.likeness.Likeness.overall` (0: anything is taken). max_reseeds: further candidates
    that may be made to get there.
    """

    n: int = 1
    min_identity: float = 0.0
    max_reseeds: int = MAX_RESEEDS

    @property
    def judged(self) -> bool:
        """Whether it cannot be granted without somebody who tells likeness."""
        return self.n > 1 or self.min_identity > 0

    @property
    def most(self) -> int:
        """How many videos may have to be made."""
        return self.n + (self.max_reseeds if self.min_identity > 0 else 0)

    def validate(self, num_subjects: int) -> None:
        """Raises SpecError, naming the first field that cannot be granted."""
        _check_whole("n", self.n, 1, MAX_CANDIDATES)
        _check_real("min_identity", self.min_identity, 0.0, 1.0)
        _check_whole("max_reseeds", self.max_reseeds, 0, MAX_RESEEDS)
        if self.judged and num_subjects == 0:
            field = "n" if self.n > 1 else "min_identity"
            raise SpecError(field, "needs subjects: candidates are compared by their likeness")


@dataclass(frozen=True)
class Reference:
    """One picture of one subject: `rgb` holds height * width * 3 bytes, rows from the top."""

    name: str
    width: int
    height: int
    rgb: bytes

    def __post_init__(self) -> None:
        if len(self.rgb) != self.width * self.height * 3 or not self.rgb:
            raise SpecError(
                f"subjects.{self.name}",
                f"{len(self.rgb)} bytes are not a {self.width}x{self.height} RGB picture",
            )

    @classmethod
    def from_image(cls, name: str, image: "Image") -> "Reference":
        """Any Pillow image, turned upright; what is transparent is laid over the pads' grey.

        The service does the same to uploads (`service.decode`), where strangers send them.
        """
        from PIL import Image as pillow
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = pillow.new("RGB", rgba.size, (PAD_GREY,) * 3)
            image.paste(rgba, mask=rgba.getchannel("A"))
        rgb = image.convert("RGB")
        return cls(name=name, width=rgb.width, height=rgb.height, rgb=rgb.tobytes())

    def to_image(self) -> "Image":
        """The picture as a Pillow RGB image."""
        from PIL import Image as pillow

        return pillow.frombytes("RGB", (self.width, self.height), self.rgb)

    def digest(self) -> str:
        """sha256 of size and pixels, in hex. The name is not part of it."""
        head = f"{self.width}x{self.height}:".encode()
        return hashlib.sha256(head + self.rgb).hexdigest()


def frames_of(seconds: float, fps: int, limits: Limits) -> int:
    """The number of frames, of the form 4k+1, that plays nearest to `seconds` at `fps`.

    Raises:
        SpecError: outside of what the model makes, infinite or no number.
    """
    low, high = limits.min_frames / fps, limits.max_frames / fps
    # One frame's grain on either side still rounds to a length that can be made.
    if math.isfinite(seconds) and 0 < seconds < 2 * high:
        frames = 4 * round((seconds * fps - 1) / 4) + 1
        if limits.min_frames <= frames <= limits.max_frames:
            return frames
    message = f"must lie between {low:g} and {high:g} at {fps} frames a second, got {seconds:g}"
    raise SpecError("seconds", message)


def spans(prompt: str, names: tuple[str, ...]) -> tuple[Span, ...]:
    """Where each subject is first named in the prompt: [start, end) with the at sign.

    Raises:
        SpecError: a subject that the prompt never names.
    """
    first: dict[str, Span] = {}
    for mention in _MENTION.finditer(prompt):
        first.setdefault(mention.group(1), mention.span())
    for name in names:
        if name not in first:
            raise SpecError("prompt", f"never names @{name}, of whom there is a picture")
    return tuple(first[name] for name in names)


def clean(text: str) -> str:
    """Text as Wan reads it (Wan2.1 `wan/modules/tokenizers.py`), but for white space at its ends:
    mended by ftfy, which also narrows full-width signs, entities of HTML read, white space as one
    space."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(text))))


def text_of(prompt: str, names: tuple[str, ...]) -> tuple[str, tuple[tuple[Span, ...], ...]]:
    """The prompt as the encoders read it, and every mention of each subject in that text.

    "@anna  waves", ("anna",) -> "anna waves", (((0, 4),),). What stands between mentions is read
    as by `clean`; an at sign that only comes out there names nobody.

    Raises:
        SpecError: a name without a picture, or a picture that is never named.
    """
    found: dict[str, list[Span]] = {name: [] for name in names}
    parts: list[str] = []
    length, read = 0, 0
    for mention in _MENTION.finditer(prompt):
        name = mention.group(1)
        if name not in found:
            raise SpecError("prompt", f"names @{name}, but there is no picture of {name}")
        before = clean(prompt[read : mention.start()])
        before = before if parts else before.lstrip()
        parts += [before, name]
        start = length + len(before)
        found[name].append((start, start + len(name)))
        length, read = start + len(name), mention.end()
    rest = clean(prompt[read:]).rstrip()
    parts.append(rest if parts else rest.lstrip())
    for name, mentions in found.items():
        if not mentions:
            raise SpecError("prompt", f"never names @{name}, of whom there is a picture")
    return "".join(parts), tuple(tuple(found[name]) for name in names)


def check_word(field: str, word: object, known: tuple[str, ...]) -> None:
    """Raises SpecError unless it is one of the known words."""
    if word not in known:
        raise SpecError(field, f"must be one of {', '.join(known)}, got {word!r:.40}")


def _check_names(names: tuple[str, ...], max_subjects: int) -> None:
    if len(names) > max_subjects:
        raise SpecError("subjects", f"at most {max_subjects} subjects, got {len(names)}")
    for place, name in enumerate(names):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise SpecError(
                "subjects",
                f"{name!r} is not a name: a letter, then up to 31 letters, digits or _",
            )
        if name in names[:place]:
            raise SpecError("subjects", f"the name {name} is given twice")


def _check_text(name: str, value: object, max_chars: int) -> None:
    if not isinstance(value, str):
        raise SpecError(name, "must be text")
    if len(value) > max_chars:
        raise SpecError(name, f"at most {max_chars} characters, got {len(value)}")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(name, f"must be a whole number, got {value!r:.40}")
    if not low <= value <= high:
        # Python refuses to print integers of thousands of digits.
        shown = str(value) if value.bit_length() < 64 else "a number far beyond"
        raise SpecError(name, f"must lie between {low} and {high}, got {shown}")


def _check_real(name: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(name, f"must be a number, got {value!r:.40}")
    if not math.isfinite(value) or not low <= value <= high:
        raise SpecError(name, f"must lie between {low:g} and {high:g}, got {value:g}")
