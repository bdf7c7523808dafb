"""`troupe generate`: one video in this process, without the service."""

import json
import os
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from PIL import Image, UnidentifiedImageError

from engine.errors import BackendError, CheckpointError, SpecError, TroupeError, VideoError
from engine.presets import Preset
from engine.runtime import STANDARD, Runtime
from engine.spec import SOLVERS, TIERS, Guidance, Reference, Spec, check_word, frames_of
from troupe.terminal import SPEAKS, busy, fail, out, progress_bar

if TYPE_CHECKING:
    from engine.edit import Edit
    from engine.parallel import Team
    from engine.pipeline import Engine, Progress
    from engine.video import Video

MODEL = Path("models/miniature")
STRENGTH = 0.6
RUNTIME = "TROUPE_RUNTIME"  # stands for --runtime, and for a worker's
SHARES = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 1.0)}
# What a field of a Spec is called on the command line, where the two differ.
OPTIONS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative",
    "width": "--size",
    "height": "--size",
    "num_frames": "--frames",
    "guidance.scale": "--guidance",
    "guidance.identity_scale": "--identity-scale",
    "subjects": "--subject",
    "video": "--video",
}


def generate(
    prompt: Annotated[str, typer.Option(help='What happens, e.g. "@anna waves to @bob".')],
    subject: Annotated[
        list[str] | None, typer.Option(help="NAME=PICTURE of one subject; repeat, up to four.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames, 4k+1.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length, instead of --frames.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    guidance: Annotated[
        float | None, typer.Option(help="Pull of the conditions; under Phantom, of the words.")
    ] = None,
    identity_scale: Annotated[
        float | None, typer.Option(help="How far the subjects' readers move it; 0 is off.")
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to show.")] = "",
    solver: Annotated[str | None, typer.Option(help="euler or unipc.")] = None,
    tier: Annotated[
        str | None, typer.Option(help="exact, or fast: similar steps are skipped, at a loss.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video to edit, mp4; stretched to --size.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help=f"How much of --video is made anew, up to 1 ({STRENGTH}).")
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Picture, white where --video is made anew.")
    ] = None,
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL,
    runtime: Annotated[
        str,
        typer.Option(
            help="Where and how it computes, such as dtype=bf16,compile=inductor.", envvar=RUNTIME
        ),
    ] = "",
    parallel: Annotated[
        str | None,
        typer.Option(help="Share it over torchrun's processes: cfg, sequence, cfg=2,sequence=4."),
    ] = None,
    out_path: Annotated[Path, typer.Option("--out", help="File to write.")] = Path("out.mp4"),
) -> None:
    """Make a video of named subjects, and a contact sheet beside it."""
    SPEAKS.set(_is_first)
    if out_path.suffix.lower() != ".mp4":
        fail(f"--out {out_path}: must end in .mp4, which is what it will be")
    computes = read_runtime(runtime)
    team = join_team(parallel, computes.device)
    try:
        check_words(solver, tier)
        references = read_subjects(subject or [])
        old = None if video is None else read_video(video)
        for name, value in (("mask", mask), ("strength", strength)):
            if old is None and value is not None:
                raise SpecError(name, "needs --video, which it is about")
        if old is not None and fps is None:
            fps = old.fps
        with busy("starting"):
            preset = read_preset(model)
        if old is not None and frames is None and seconds is None:
            frames = video_length(old, preset)
        given = {
            "fps": fps,
            "steps": steps,
            "seed": seed,
            "solver": solver,
            "tier": tier,
            "negative_prompt": negative,
            "guidance": pull(preset, guidance, identity_scale),
            "num_frames": num_frames(preset, frames, seconds, fps),
            **parse_size(size),
        }
        names = tuple(reference.name for reference in references)
        asked = {name: value for name, value in given.items() if value is not None}
        spec = Spec.of(preset, prompt, names, **asked)
        spec.validate(preset.limits)
        edit = None if old is None else read_edit(old, strength, mask, spec)
    except SpecError as error:
        fail(f"{option_of(error.field)} {error.message}", "troupe generate --help")
    with busy("loading the model"):
        engine = load_engine(model, computes, team)
    render(engine, spec, references, out_path, edit, computes)
    if team is not None:
        team.leave()


def render(
    engine: "Engine",
    spec: Spec,
    references: list[Reference],
    path: Path,
    edit: "Edit | None" = None,
    computes: Runtime = STANDARD,
) -> None:
    """Generate with a progress bar; write the video and, beside it, the contact sheet."""
    started = time.monotonic()
    first = engine.team is None or engine.team.is_first
    try:
        with progress_bar(shown=first) as bar:
            tell = _follow(bar, compiles=computes.compile != "eager")
            video = engine.generate(spec, references, on_progress=tell, edit=edit)
        if not first:
            return
        write(video, spec, references, path, edit)
    except TroupeError as error:
        fail(str(error))
    except OSError as error:
        fail(f"--out {path} cannot be written: {error.strerror}")
    took = time.monotonic() - started
    enlarged = f", enlarged {scale} times to be seen" if (scale := video.view_scale()) > 1 else ""
    made = f"{path} ({spec.width}x{spec.height}{enlarged}) and {path.with_suffix('.png')}"
    skipped = "" if spec.tier == "exact" else f"; {video.made}"
    how = "" if computes == STANDARD else f"; with {computes}"
    out.print(f"{made}: {took:.1f} s, not counting the start{how}{skipped}", markup=False)


def write(
    video: "Video",
    spec: Spec,
    references: list[Reference],
    path: Path,
    edit: "Edit | None" = None,
) -> None:
    """The mp4 at `path` and the contact sheet under the same name as a png.

    The mark in its pixels stands for the spec: here is no job, and the same command gives the same
    bytes.
    """
    from engine.watermark import payload_of

    path.parent.mkdir(parents=True, exist_ok=True)
    payload = payload_of(json.dumps(spec.to_json(), sort_keys=True))
    path.write_bytes(video.mp4(video.view_scale(), payload))
    before = None if edit is None else edit.video
    video.contact_sheet(references, before=before).save(path.with_suffix(".png"))


def join_team(parallel: str | None, device: str) -> "Team | None":
    """Meet the other processes, if there are to be some; then one of them speaks if the command
    fails. Ends a command that torchrun has started several times without `--parallel`."""
    if parallel is None:
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return None
        if not _is_first():
            # A failure here would have torchrun end the first before it can say why.
            raise typer.Exit
        fail(
            f"--parallel is missing: torchrun has started {os.environ['WORLD_SIZE']} processes, and"
            " each would make the whole video; --parallel cfg lets them share it",
            "troupe generate --help",
        )
    from engine.parallel import join

    try:
        team = join(parallel, device)
    except BackendError as error:
        fail(_about(error))
    SPEAKS.set(team.speaks)
    return team


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def check_words(solver: str | None, tier: str | None) -> None:
    """What needs no model to be seen, and none of the seconds that one takes. Raises SpecError."""
    for name, word, known in (("solver", solver, SOLVERS), ("tier", tier, TIERS)):
        if word is not None:
            check_word(name, word, known)


def read_runtime(text: str) -> Runtime:
    """Ends the command where the words are unknown."""
    try:
        runtime = Runtime.parse(text)
        if runtime.encoders != "local":
            raise BackendError(f"encoders={runtime.encoders} is for workers: troupe up --encoders")
    except BackendError as error:
        fail(_about(error), "troupe generate --help")
    return runtime


def read_preset(folder: Path) -> Preset:
    """The sizes and limits of a model folder, before its weights are; ends the command where it is
    none."""
    from engine.folders import read_manifest

    try:
        return read_manifest(folder).resolve()
    except (CheckpointError, OSError) as error:
        fail(f"--model {folder}: {error}", "troupe doctor")


def load_engine(
    folder: Path, runtime: Runtime = STANDARD, team: "Team | None" = None
) -> "Engine":
    """Verify and load a model folder; ends the command with a remedy when that fails."""
    from engine.pipeline import Engine

    try:
        if team is not None:
            runtime = replace(runtime, device=team.device)
        return Engine.load(folder, runtime=runtime, team=team)
    except BackendError as error:
        fail(_about(error), "troupe doctor")
    except (CheckpointError, FileNotFoundError) as error:
        fail(f"--model {folder}: {error}", "troupe doctor")


def _about(error: BackendError) -> str:
    """The error behind the option that it is about."""
    if str(error).startswith("parallel "):
        return f"--{error}"
    return f"--runtime{f' or {RUNTIME}' if os.environ.get(RUNTIME) else ''}: {error}"


def read_subjects(given: list[str]) -> list[Reference]:
    """NAME=PICTURE pairs as References, in the order given. Raises SpecError."""
    return [_read_subject(pair) for pair in given]


def _read_subject(pair: str) -> Reference:
    name, sign, path = pair.partition("=")
    if not (name and sign and path):
        raise SpecError("subjects", f"{pair!r} must be NAME=PICTURE, as in anna=anna.png")
    return Reference.from_image(name.removeprefix("@"), _read_picture(path, "subjects", name))


def _read_picture(path: str | Path, field: str, name: str) -> Image.Image:
    """A picture, its pixels read. Raises SpecError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return picture
    except FileNotFoundError as error:
        raise SpecError(field, f"{name}: there is no file {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise SpecError(field, f"{name}: {path} is not a picture that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpecError(field, f"{name}: {path} has too many pixels") from error


def read_video(path: Path) -> "Video":
    """The frames of an mp4. Raises SpecError."""
    from engine.video import Video

    try:
        return Video.from_mp4(path.read_bytes())
    except FileNotFoundError as error:
        raise SpecError("video", f"there is no file {path}") from error
    except OSError as error:
        raise SpecError("video", f"{path} cannot be read: {error.strerror}") from error
    except VideoError as error:
        raise SpecError("video", f"{path} is not a video that can be read") from error


def video_length(video: "Video", preset: Preset) -> int:
    """Frames of the video that the model can take. Raises SpecError."""
    from engine.edit import length

    return length(video, preset.limits)


def read_edit(
    video: "Video", strength: float | None, mask: Path | None, spec: Spec
) -> "Edit":
    """The video and mask at the spec's size. Raises SpecError."""
    import numpy as np

    from engine.edit import Edit, fitted

    marked = None
    if mask is not None:
        size = (spec.width, spec.height)
        picture = _read_picture(mask, "mask", "white where the video is made anew")
        # What is transparent is not white, whatever colour hides there.
        shown = Image.alpha_composite(
            Image.new("RGBA", picture.size, "black"), picture.convert("RGBA")
        )
        marked = np.array(shown.convert("L").resize(size)) > 127
        if not marked.any():
            raise SpecError("mask", f"{mask} has no white, which is where the video is made anew")
    strength = STRENGTH if strength is None else strength
    edit = Edit(fitted(video, spec.width, spec.height, spec.num_frames), strength, marked)
    edit.validate(spec)
    return edit


def parse_size(size: str | None) -> dict[str, Any]:
    """ "96x64" as width and height; nothing given, nothing set. Raises SpecError."""
    if size is None:
        return {}
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", size)
    if match is None:
        raise SpecError("width", f"must be WIDTHxHEIGHT, as in 96x64, got {size!r:.40}")
    return {"width": int(match[1]), "height": int(match[2])}


def num_frames(
    preset: Preset, frames: int | None, seconds: float | None, fps: int | None
) -> int | None:
    """Frames asked for, or those nearest to `seconds` on the model's grid of 4k+1."""
    if frames is not None and seconds is not None:
        raise SpecError("num_frames", "and --seconds are two ways to say one thing; give one")
    if seconds is None:
        return frames
    limits = preset.limits
    fps = preset.defaults.fps if fps is None else fps
    if not limits.min_fps <= fps <= limits.max_fps:
        raise SpecError("fps", f"must lie between {limits.min_fps} and {limits.max_fps}")
    try:
        return frames_of(seconds, fps, limits)
    except SpecError as error:
        raise SpecError("--seconds", error.message) from error


def pull(preset: Preset, scale: float | None, identity_scale: float | None) -> Guidance:
    """The preset's kind of guidance with these scales, where they are given; `scale` is that of the
    text under dual guidance."""
    usual = Guidance.assumed(preset)
    name = "text_scale" if usual.mode == "dual" else "scale"
    changes: dict[str, Any] = {name: scale, "identity_scale": identity_scale}
    return replace(usual, **{name: value for name, value in changes.items() if value is not None})


def option_of(field: str) -> str:
    """The option behind a Spec's field: num_frames is --frames."""
    if field.startswith("-"):
        return field
    return OPTIONS.get(field, f"--{field.split('.')[0].replace('_', '-')}")


def _follow(bar: Any, compiles: bool = False) -> Callable[["Progress"], None]:
    """compiles: the first step may take a minute longer, and says why."""
    task = bar.add_task("encode", total=1.0)

    def on_progress(progress: "Progress") -> None:
        low, high = SHARES[progress.stage]
        done = progress.step / max(progress.num_steps, 1)
        words = f"{progress.stage} {progress.step}/{progress.num_steps}"
        if compiles and progress.stage == "denoise" and progress.step == 0:
            words += ", compiling first"
        bar.update(task, completed=low + (high - low) * done, description=words)

    return on_progress
