"""`troupe plan`: what a request costs on a GPU, before anybody rents one."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from engine.errors import BackendError, SpecError
from engine.presets import PRESETS, Preset
from engine.runtime import Runtime
from engine.spec import Guidance, Spec
from troupe.generate import option_of, parse_size
from troupe.terminal import busy, fail, out

if TYPE_CHECKING:
    from engine.plan import Card, Plan, Stage
    from engine.plan_shared import SharedPlan

MODES = ("off", "single", "dual")
# Fields of a Spec that go by another name here than in `troupe generate`.
OPTIONS = {"guidance.interval": "--interval"}


def plan(
    preset: Annotated[str, typer.Option(help=f"{', '.join(PRESETS)}.")] = "wan-1.3b",
    subjects: Annotated[int, typer.Option(help="How many subjects, each with a picture.")] = 2,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Number of frames, 4k+1.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[
        str | None, typer.Option(help="off, single or dual; otherwise the preset's own.")
    ] = None,
    interval: Annotated[
        tuple[float, float], typer.Option(help="Times (1 is noise) between which it guides.")
    ] = (0.0, 1.0),
    gpu: Annotated[str, typer.Option(help="h200, h100, a100, …; a wrong one lists them.")] = "h200",
    cards: Annotated[int, typer.Option(min=1, help="How many of them share each video.")] = 1,
    runtime: Annotated[
        str, typer.Option(help="One to tell memory for too, such as offload=encoders,tile=4096.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Count FLOPs, memory and seconds of one video, stage by stage."""
    if preset not in PRESETS:
        fail(f"--preset {preset}: must be one of {', '.join(PRESETS)}")
    guidance = guidance or PRESETS[preset].defaults.guidance_mode
    if guidance not in MODES:
        fail(f"--guidance {guidance}: must be one of {', '.join(MODES)}")
    most = PRESETS[preset].limits.max_subjects
    if not 0 <= subjects <= most:
        fail(f"--subjects {subjects}: must be from 0 to {most}")
    asked: dict[str, Any] = {"num_frames": frames, "steps": steps}
    asked = {name: value for name, value in asked.items() if value is not None}
    try:
        own = Runtime.parse(runtime)
        asked |= {**parse_size(size), "guidance": _guidance(PRESETS[preset], guidance, interval)}
        names = tuple(f"s{number}" for number in range(subjects))
        prompt = " and ".join(f"@{name}" for name in names) or "a place"
        spec = Spec.of(PRESETS[preset], prompt, names, **asked)
        card = _card(gpu)
        with busy("counting on tensors without contents"):
            found = _count(PRESETS[preset], spec, card, own)
            shared = None if cards == 1 else _share(found, PRESETS[preset], spec, cards)
    except SpecError as error:
        option = OPTIONS.get(error.field) or option_of(error.field)
        fail(f"{option} {error.message}", "troupe plan --help")
    except BackendError as error:
        fail(f"--runtime: {error}", "troupe plan --help")
    if as_json:
        typer.echo(json.dumps(as_values(found, shared)))
        return
    _show(found, spec)
    if shared is not None:
        out.print(
            f"{cards} such cards, cfg={shared.parallel.cfg},sequence={shared.parallel.sequence}:"
            f" about [bold]{shared.expected_s:,.1f} s[/] without waiting for each other; each sends"
            f" {shared.sent_bytes / 1e9:,.1f} GB and holds all weights."
        )


def _guidance(preset: Preset, mode: str, interval: tuple[float, float]) -> Guidance:
    if mode == "dual":
        return Guidance("dual", interval=interval)
    scale = 1.0 if mode == "off" else preset.defaults.guidance
    return Guidance("single", scale, interval=interval)


def _card(name: str) -> "Card":
    """Ends the command where there is no such card."""
    from engine.plan import CARDS

    if name not in CARDS:
        fail(f"--gpu {name}: must be one of {', '.join(CARDS)}")
    return CARDS[name]


def _count(preset: Preset, spec: Spec, card: "Card", runtime: Runtime) -> "Plan":
    from engine.plan import plan as count

    return count(preset, spec, card, runtime)


def _share(found: "Plan", preset: Preset, spec: Spec, cards: int) -> "SharedPlan":
    from engine.plan_shared import share

    return share(found, preset, spec, cards)


def as_values(found: "Plan", shared: "SharedPlan | None" = None) -> dict[str, Any]:
    """Plain numbers: FLOPs, seconds and bytes."""
    return {
        "preset": found.preset,
        "gpu": found.card.name,
        "flops": found.flops,
        "floor_s": found.floor_s,
        "expected_s": found.expected_s,
        "memory_bytes": found.memory,
        "weights_bytes": found.weights,
        "stages": [
            {
                "name": stage.name,
                "runs": stage.runs,
                "flops_each": stage.cost.total,
                "expected_s": stage.seconds(found.card),
                "peak_bytes": stage.cost.peak_bytes,
            }
            for stage in found.stages
        ],
        "decodings": [
            {"name": way.name, "peak_bytes": way.peak_bytes, "work": way.work}
            for way in found.decodings
        ],
        "guidance_forwards": {mode: sum(runs) for mode, runs in found.options.items()},
        "shared": None if shared is None else _shared_values(shared),
    }


def _shared_values(shared: "SharedPlan") -> dict[str, float]:
    costs = {"expected_s": shared.expected_s, "sent_bytes": shared.sent_bytes}
    return {**shared.parallel._asdict(), **costs}


def _show(found: "Plan", spec: Spec) -> None:
    card = found.card
    out.print(
        f"[bold]{found.preset}[/]: {spec.width}x{spec.height}, {spec.num_frames} frames,"
        f" {spec.steps} steps, {len(spec.names)} subjects, on one {card.name}"
        f" ({card.tflops:g} TFLOP/s dense bf16, {card.memory_gb:g} GB)"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for title in ("runs", "TFLOP each", "TFLOP", "expected s", "peak GB"):
        table.add_column(title, justify="right")
    for stage in found.stages:
        table.add_row(stage.name, *_row(found, stage))
    out.print(table)
    out.print("Peaks are those of the work, beside the weights.")
    floor, usual = f"[bold]{found.floor_s:,.1f} s[/]", f"[bold]{found.expected_s:,.1f} s[/]"
    total = f"In all {found.flops / 1e12:,.2f} TFLOP"
    out.print(
        f"{total}: at least {floor} (eight tenths of the card's rate, what large products reach);"
        f" good programs take about {usual}."
    )
    forwards = (f"{mode} {sum(runs)}" for mode, runs in found.options.items())
    out.print(f"Forwards by kind of guidance: {', '.join(forwards)}.")
    ways = (f"{w.name} {w.peak_bytes / 1e9:.3g} GB ({w.work:.2g}x)" for w in found.decodings)
    told = f"Decoding, by memory (and work): {', '.join(ways)}"
    out.print(f"{told}; tile= is a key of troupe generate --runtime.")
    _show_memory(found)


def _row(found: "Plan", stage: "Stage") -> list[str]:
    each, total = stage.cost.total / 1e12, stage.flops / 1e12
    seconds = stage.seconds(found.card)
    peak = stage.cost.peak_bytes / 1e9
    return [
        str(stage.runs),
        f"{each:.4g}",
        f"{total:,.{0 if total >= 1000 else 3}f}",
        f"{seconds:,.{0 if seconds >= 100 else 2}f}",
        f"{peak:.2f}" if peak else "",
    ]


def _show_memory(found: "Plan") -> None:
    out.print("Memory with the weights, in bf16 unless it says fp32, by --runtime:")
    width = max(map(len, found.memory))
    for runtime, need in found.memory.items():
        fits = need / 1e9 <= found.card.memory_gb
        verdict = "[green]fits[/]" if fits else "[red]does not fit[/]"
        out.print(f"  {runtime:<{width}} {need / 1e9:>7.1f} GB, {verdict}", highlight=False)
