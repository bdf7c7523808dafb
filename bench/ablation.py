"""Does each stage earn its place? `python -m bench.ablation --steps 1000 --seeds 3`.

Trains the miniature anew for each arm and seed on the same shards with the same small budget, and
measures it on held-out scenes that are hard on purpose: near-twins side by side, characters that
hide each other, casts of three and of four. Arms follow Table 2 and Table S.5 of ID-Crafter.

At `--size small` (the default) the clips are half as wide and high, as in the first phase of the
miniature's own training, and are enlarged for the instruments; `--size full` is the real size.

Resumable: a training goes on from its last save, and an arm whose result.json exists is not
repeated. Seeds are the outer loop, so a study that is cut short is still balanced. After each arm
docs/ablation.md and docs/ablation.png are written anew from what there is.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from engine import checkpoint
from engine.dit import WanDiT
from engine.pipeline import Engine
from training import dist, evaluate, sft
from training.data.precompute import load_sources
from training.data.shards import read_header
from training.measure import Instruments
from training.world.clip import Clip, sample_clip

# Arm -> what is changed in the DiT's config.
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "no intra-subject attention": {"intra": False},
    "no inter-subject attention": {"inter": "off"},
    "no cross-modal stage": {"cross_modal": False},
    "no VLM tokens": {"use_vlm": False},
    "plain concatenation": {"layout": "concat"},
    "no tag": {"tag": False},
}
KINDS = ("twins", "occlusion", "three", "four")
MEASURES = ("reached", "similarity", "worst", "swaps", "missing", "motion")
HIDDEN = 0.5  # a scene counts as occluded where a body shows less than this in some frame


@dataclass(frozen=True)
class Study:
    """The budget of one arm: steps or minutes. cases: clips of each kind; sampler: its steps."""

    folder: Path
    steps: int | None = 1000
    minutes: float | None = None
    seeds: int = 3
    cases: int = 24
    sampler_steps: int = 16
    num_processes: int = 1
    batch_size: int = 32
    accumulate: int = 1
    instruments: Path = Path("runs/identity")


def slug(arm: str) -> str:
    """An arm's name as a folder's."""
    return arm.lower().replace(" ", "-")


def study_base(size: str, compile: bool = False) -> sft.SftConfig:
    """What all arms share: fresh weights, VLM tokens on, the shards of the recipe of this size."""
    config = sft.miniature_small() if size == "small" else sft.miniature()
    most = max(num for _, num in config.data.plan)
    # Compiled code wants one shape; otherwise batches of one number of subjects are cheaper.
    data = replace(config.data, plan=((0, most),), mixed=compile)
    return replace(config, data=data, base=None, use_vlm_tokens=True, compile=compile)


def arm_config(base: sft.SftConfig, study: Study, arm: str, seed: int) -> sft.SftConfig:
    """The recipe of one arm: the base recipe, its DiT changed, with the study's budget."""
    loop = replace(
        base.loop, name=f"{slug(arm)}-{seed}", steps=study.steps, minutes=study.minutes,
        seed=seed, sheet_every=0, accumulate=study.accumulate, save_every_s=60.0,
    )  # fmt: skip
    preset = replace(base.preset, dit=replace(base.preset.dit, **ARMS[arm]))
    data = replace(base.data, batch_size=study.batch_size)
    return replace(
        base, loop=loop, preset=preset, data=data, num_processes=study.num_processes
    )


def hard_clips(kind: str, num: int) -> list[Clip]:
    """The first `num` held-out clips of a kind, each number of subjects fixed within a kind."""
    found: list[Clip] = []
    for clip in _candidates(kind):
        if len(found) == num:
            break
        if evaluate.tells_places(clip) and (kind != "occlusion" or _is_occluded(clip)):
            found.append(clip)
    return found


def _candidates(kind: str) -> Iterator[Clip]:
    count = {"twins": 2, "occlusion": 3, "three": 3, "four": 4}[kind]
    twins = kind == "twins"
    seed = 500_000 + 100_000 * KINDS.index(kind)
    while True:
        yield sample_clip(
            seed, split="heldout", num_subjects=count, style="names", twins=twins
        )
        seed += 1


def _is_occluded(clip: Clip) -> bool:
    return bool((clip.visibility < HIDDEN).sum(axis=1).max() >= 2)


def measure_arm(config: sft.SftConfig, study: Study, weights: Path) -> dict[str, dict[str, float]]:
    """Figures of one trained arm for each kind of scene."""
    dit = WanDiT(config.preset.dit)
    checkpoint.load_strict(dit, weights)
    data = config.data
    sources = load_sources(data.encoders, config.preset, config.columns)
    side = data.reference_size
    preset = replace(config.preset, reference_width=side, reference_height=side)
    engine = Engine(dit, sources.encoders, preset, "ablation")
    made = evaluate.from_engine(engine, steps=study.sampler_steps, bf16=config.loop.bf16)
    generate = at_size(made, data.height, data.width)
    tools = Instruments.load(study.instruments)
    figures = {}
    for kind in KINDS:
        cases = evaluate.prepare(hard_clips(kind, study.cases), tools)
        table = evaluate.evaluate(generate, tools, cases, seeds=1)
        figures[kind] = {name: float(table[name]) for name in (*MEASURES, "upper", "lower")}
    return figures


def at_size(generate: evaluate.Generate, height: int, width: int) -> evaluate.Generate:
    """Generates at another size than the clips' and enlarges or reduces to theirs."""

    def resized(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
        num_frames, tall, wide = clips[0].frames.shape[:3]
        if (tall, wide) == (height, width):
            return generate(clips, seeds)
        blank = np.zeros((num_frames, height, width, 3), np.uint8)
        frames = generate([replace(clip, frames=blank) for clip in clips], seeds)
        pictures = torch.from_numpy(frames).flatten(0, 1).movedim(-1, 1).float()
        large = F.interpolate(pictures, (tall, wide), mode="bicubic", antialias=True)
        bytes_ = large.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
        return bytes_.unflatten(0, frames.shape[:2]).numpy()

    return resized


def run_arm(base: sft.SftConfig, study: Study, arm: str, seed: int) -> dict[str, Any]:
    """Trains and measures one arm with one seed, or reads what was measured before."""
    folder = study.folder / slug(arm) / str(seed)
    result_file = folder / "result.json"
    if result_file.exists():
        known: dict[str, Any] = json.loads(result_file.read_text())
        return known
    config = arm_config(base, study, arm, seed)
    begun = time.monotonic()
    dist.launch(partial(_train, config, folder), study.num_processes)
    result = {
        "arm": arm,
        "seed": seed,
        "steps": last_step(folder),
        "minutes": round((time.monotonic() - begun) / 60, 2),
        "kinds": measure_arm(config, study, folder / "dit.safetensors"),
    }
    temporary = result_file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1))
    os.replace(temporary, result_file)
    return result


def _train(config: sft.SftConfig, folder: Path) -> None:
    outcome = sft.train(config, folder)
    if not outcome.finished:
        sys.exit(143)  # stopped by a signal: the next call goes on from the saved state


def last_step(folder: Path) -> int:
    """The step at which a run was last saved."""
    header = read_header(folder / "state" / "train.safetensors")
    return int(json.loads(header["position"])["step"])


def mean_over_kinds(result: dict[str, Any], measure: str) -> float:
    """One figure of a result, each kind of scene counting alike."""
    return statistics.fmean(result["kinds"][kind][measure] for kind in KINDS)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of each arm in the order of ARMS; arms without any are left out."""
    return {
        arm: found
        for arm in ARMS
        if (found := [result for result in results if result["arm"] == arm])
    }


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: one row per arm; mean and standard deviation over seeds."""
    names = ("reached", "worst", "swaps", "missing", "motion")
    head = ["arm", "seeds", "steps", *names, *(f"reached: {kind}" for kind in KINDS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, found in by_arm(results).items():
        cells = [arm, str(len(found)), str(round(statistics.fmean(r["steps"] for r in found)))]
        for name in names:
            cells.append(_cell([mean_over_kinds(result, name) for result in found]))
        for kind in KINDS:
            cells.append(_cell([result["kinds"][kind]["reached"] for result in found]))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(values: Sequence[float]) -> str:
    mean, deviation = spread(values)
    return f"{mean:.3f} ± {deviation:.3f}"


def differences(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: each arm against the full model, paired by seed, in units of its standard error."""
    full = {r["seed"]: r for r in results if r["arm"] == "full"}
    lines = ["| arm | reached, minus full | swaps, minus full | pairs |", "|---|---|---|---|"]
    for arm, found in by_arm(results).items():
        pairs = [(r, full[r["seed"]]) for r in found if r["seed"] in full]
        if arm == "full" or not pairs:
            continue
        cells = []
        for name in ("reached", "swaps"):
            gaps = [mean_over_kinds(a, name) - mean_over_kinds(b, name) for a, b in pairs]
            mean, deviation = spread(gaps)
            error = deviation / len(gaps) ** 0.5
            cells.append(f"{mean:+.3f}" + (f" (standard error {error:.3f})" if error else ""))
        lines.append(f"| {arm} | {cells[0]} | {cells[1]} | {len(pairs)} |")
    return lines


def write_report(results: Sequence[dict[str, Any]], study: Study, docs: Path) -> None:
    """docs/ablation.md and docs/ablation.png."""
    budget = f"{study.steps} steps" if study.steps else f"{study.minutes} minutes"
    lines = [
        "# Does each stage earn its place?",
        "",
        f"Each arm was trained anew for {budget} of {study.batch_size * study.accumulate} clips"
        f" per process ({study.num_processes}), on the same shards, and measured on"
        f" {study.cases} held-out scenes of each kind: near-twins side by side, characters that"
        " hide each other (three on stage, one of them less than half visible), casts of three,"
        " casts of four. `reached` is the share of the way from a random other identity to the"
        " true clip; `swaps` the share of subjects in whose place another one of the cast is seen."
        " Figures are means ± standard deviation over seeds.",
        "",
        *table(results),
        "",
        "![the same as a plot](ablation.png)",
        "",
        "## Against the full model",
        "",
        *differences(results),
        "",
        "A difference smaller than about two standard errors is not told apart from chance here."
        " The budget is small on purpose; what a stage is worth after long training may differ.",
        "",
        "Made by `python -m bench.ablation`; run it again to add seeds or arms.",
        "",
    ]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "ablation.md").write_text("\n".join(lines))
    draw(results, docs / "ablation.png")


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Every seed as a dot, the mean as a bar: identity on the left, swaps on the right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    arms = by_arm(results)
    figure = Figure(figsize=(10, 0.5 * len(arms) + 1.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(("reached", "swaps"), start=1):
        axis = figure.add_subplot(1, 2, place)
        for row, found in enumerate(arms.values()):
            values = [mean_over_kinds(result, name) for result in found]
            axis.barh(row, statistics.fmean(values), color="#b8c4d6", height=0.6)
            axis.plot(values, [row] * len(values), "o", color="#24406b", markersize=4)
        axis.set_yticks(range(len(arms)), list(arms) if place == 1 else [""] * len(arms))
        axis.invert_yaxis()
        axis.set_title(name)
    figure.savefig(path, dpi=100, format="png")


def run_study(base: sft.SftConfig, study: Study, arms: Sequence[str], docs: Path) -> None:
    """All arms and seeds; the report after each."""
    results: list[dict[str, Any]] = []
    most = max(num for _, num in base.data.plan)
    dist.launch(partial(sft.precompute_part, base, most), study.num_processes)
    for seed in range(study.seeds):
        for arm in arms:
            results.append(run_arm(base, study, arm, seed))
            write_report(results, study, docs)
            print(f"{arm}, seed {seed}: reached {mean_over_kinds(results[-1], 'reached'):.3f}",
                  flush=True)  # fmt: skip


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, help="training steps of each arm (1000)")
    budget.add_argument("--minutes", type=float, help="or minutes of each arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=24, help="clips of each kind of scene (24)")
    parser.add_argument("--processes", type=int, default=1, help="training processes (1)")
    parser.add_argument("--batch", type=int, default=32, help="clips per batch (32)")
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--compile", action="store_true", help="torch.compile each arm")
    parser.add_argument("--instruments", type=Path, default=Path("runs/identity"))
    parser.add_argument("--accumulate", type=int, default=1, help="batches per step (1)")
    parser.add_argument("--arms", help="comma-separated, of: " + ", ".join(map(slug, ARMS)))
    parser.add_argument("--folder", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 for an unknown arm."""
    asked = arguments(given)
    known = {slug(arm): arm for arm in ARMS}
    wanted = asked.arms.split(",") if asked.arms else list(known)
    if unknown := sorted(set(wanted) - set(known)):
        print(f"unknown arm {unknown[0]!r}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    steps = None if asked.minutes else asked.steps or 1000
    study = Study(
        asked.folder, steps, asked.minutes, asked.seeds, asked.cases,
        num_processes=asked.processes, batch_size=asked.batch, accumulate=asked.accumulate,
        instruments=asked.instruments,
    )  # fmt: skip
    torch.set_num_threads(1)
    base = study_base(asked.size, asked.compile)
    run_study(base, study, [known[name] for name in wanted], asked.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
