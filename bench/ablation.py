"""Does each stage earn its place? `python -m bench.ablation --steps 1000 --seeds 3`.

As in the paper, every arm begins with the same plain text-to-video model and learns its own way to
read references on the same shards. That model is trained once, for the same budget, without any
reference: from the blocks of a whole model whose identity stream is left out (`--start`, the
shipped one, which can draw characters already), or with `--start none` from nothing. Arms are
measured on held-out scenes that are hard on purpose: near-twins side by side, pairs that differ in
a detail of the face or an accessory, characters that hide each other, casts of three and of four.
They follow Table 2 and Table S.5 of ID-Crafter.

`--size still` (the default) trains and measures single frames at full size, where identity is
learned ten times as fast as on clips; `small` takes clips of half the width and height, enlarged
for the instruments; `full` is the real thing.

Resumable: a training goes on from its last save, and what was measured under the same budget and
base is not repeated. Seeds are the outer loop, so a study that is cut short is still balanced.
After each arm docs/ablation.md and docs/ablation.png are written anew from all there is.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from bench.ablation_report import mean_over_kinds, write_report
from engine import checkpoint, folders
from engine.dit import STREAM_PARAMETERS, WanDiT
from engine.pipeline import Engine
from training import dist, evaluate, sft, sft_miniature
from training.data.precompute import load_sources
from training.data.shards import read_header
from training.measure import Instruments
from training.world.clip import Clip, sample_clip, sample_script
from training.world.identity import differing
from training.world.scene import Scene

# Arm -> what is changed in the DiT's config.
ARMS: dict[str, dict[str, Any]] = {
    "full": {},
    "no intra-subject attention": {"intra": False},
    "no inter-subject attention": {"inter": "off"},
    "no cross-modal stage": {"cross_modal": False},
    "no VLM tokens": {"use_vlm": False},
    "plain concatenation": {"layout": "concat"},
    "no tag": {"tag": False},
    "no place": {"place": False},
}
# Kind of scene -> how many are on stage.
KINDS = {"twins": 2, "detail": 2, "occlusion": 3, "three": 3, "four": 4}
FINE = {"eyes", "mouth", "accessory", "accessory_color"}
MEASURES = ("reached", "similarity", "worst", "swaps", "missing")
START = "start.safetensors"
HIDDEN = 0.5  # a scene counts as occluded where a body shows less than this in some frame


@dataclass(frozen=True)
class Study:
    """The budget of one arm: steps or minutes. cases: clips of each kind; sampler: its steps.

    folder: of all studies; each has its own inside, named after all that its figures depend on.
    start: a transformer's weights that the plain model begins with, without their stream, or None.
    """

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
    start: Path | None = None


def slug(arm: str) -> str:
    """An arm's name as a folder's."""
    return arm.lower().replace(" ", "-")


SIZES: dict[str, Callable[[], sft.SftConfig]] = {
    "still": sft_miniature.miniature_still,
    "small": sft_miniature.miniature_small,
    "full": sft_miniature.miniature,
}


def study_base(size: str, compile: bool = False, shards: int | None = None) -> sft.SftConfig:
    """What all arms share: VLM tokens on, the shards of the recipe of this size or the first of
    them, and rectified flow alone: an identity loss would ask the base for faces that it was not
    shown."""
    config = SIZES[size]()
    most = shards or max(num for _, num in config.data.plan)
    # Compiled code wants one shape; otherwise batches of one number of subjects are cheaper.
    data = replace(config.data, plan=((0, most),), mixed=compile)
    config = replace(config, identity_gain=0.0, reader=None)
    return replace(config, data=data, base=None, use_vlm_tokens=True, compile=compile)


def study_folder(base: sft.SftConfig, study: Study) -> Path:
    """Where this study's runs lie: another budget, size or recipe is another folder."""
    budget = (study.steps, study.minutes, study.num_processes, study.accumulate, study.batch_size)
    told = [budget, study.cases, study.sampler_steps, str(study.instruments), asdict(base)]
    if study.start is not None:
        told.append(folders.sha256(study.start))
    digest = hashlib.sha256(json.dumps(told, default=str, sort_keys=True).encode()).hexdigest()
    return study.folder / digest[:12]


def arm_config(base: sft.SftConfig, study: Study, arm: str, seed: int) -> sft.SftConfig:
    """The recipe of one arm: the base recipe, its DiT changed, with the study's budget."""
    plain = study_folder(base, study) / "plain" / "dit.safetensors"
    return replace(_budgeted(base, study, f"{slug(arm)}-{seed}", seed, ARMS[arm]), base=plain)


def plain_config(base: sft.SftConfig, study: Study) -> sft.SftConfig:
    """The recipe of what all arms start from: no stream, no references; every seed's own noise."""
    config = _budgeted(base, study, "plain", 1_000, {"subject_layers": 0})
    start = None if study.start is None else study_folder(base, study) / START
    return replace(config, use_vlm_tokens=False, base=start)


def _budgeted(
    base: sft.SftConfig, study: Study, name: str, seed: int, changes: dict[str, Any]
) -> sft.SftConfig:
    loop = replace(
        base.loop, name=name, steps=study.steps, minutes=study.minutes,
        seed=seed, sheet_every=0, accumulate=study.accumulate, save_every_s=60.0,
    )  # fmt: skip
    preset = replace(base.preset, dit=replace(base.preset.dit, **changes))
    data = replace(base.data, batch_size=study.batch_size, alike=study.num_processes)
    return replace(
        base, loop=loop, preset=preset, data=data, num_processes=study.num_processes
    )


def hard_clips(kind: str, num: int, still: bool = False) -> list[Clip]:
    """The first `num` held-out clips of a kind, each number of subjects fixed within a kind."""
    found: list[Clip] = []
    for seed in itertools.count(500_000 + 100_000 * list(KINDS).index(kind)):
        if len(found) == num:
            break
        asked: dict[str, Any] = {
            "split": "heldout", "num_subjects": KINDS[kind], "style": "names",
            "twins": kind in ("twins", "detail"),
        }  # fmt: skip
        scene, words, _ = sample_script(seed, **asked)
        if evaluate.tells_places(scene, words) and (kind != "detail" or _is_fine(scene)):
            clip = sample_clip(seed, still=still, **asked)
            if kind != "occlusion" or _is_occluded(clip):
                found.append(clip)
    return found


def _is_fine(scene: Scene) -> bool:
    """Whether two differ in nothing but details."""
    return FINE.issuperset(differing(*(role.identity for role in scene.cast)))


def _is_occluded(clip: Clip) -> bool:
    num_frames = clip.visibility.shape[1]
    return bool((clip.visibility < HIDDEN).sum(axis=1).max() >= min(2, num_frames))


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
        cases = evaluate.prepare(hard_clips(kind, study.cases, data.still), tools)
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
    folder = study_folder(base, study) / slug(arm) / str(seed)
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


def train_plain(base: sft.SftConfig, study: Study) -> None:
    """Makes what all arms start from, once."""
    folder = study_folder(base, study) / "plain"
    if not (folder / "done").exists():
        if study.start is not None:
            write_start(study.start, study_folder(base, study) / START)
        config = plain_config(base, study)
        dist.launch(partial(_train, config, folder), study.num_processes)
        (folder / "done").touch()


def write_start(model: Path, path: Path) -> None:
    """The weights of a model without those of its identity stream."""
    tensors = checkpoint.read_tensors(model)
    blocks = {k: v for k, v in tensors.items() if not k.startswith(STREAM_PARAMETERS)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint.tensor_bytes(blocks))


def known_results(base: sft.SftConfig, study: Study) -> list[dict[str, Any]]:
    """All that was measured in this study so far, in order of seeds."""
    files = study_folder(base, study).glob("*/*/result.json")
    found: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    order = list(ARMS)
    return sorted(found, key=lambda result: (result["seed"], order.index(result["arm"])))


def introduction(base: sft.SftConfig, study: Study) -> str:
    """What was done, in words, for the report."""
    budget = f"{study.steps} steps" if study.steps else f"{study.minutes} minutes"
    shown = "stills" if base.data.still else "clips"
    noises = f", each under {base.draws} noises," if base.draws > 1 else ""
    begun = "was trained from nothing"
    if study.start is not None:
        begun = "is a trained one without its identity stream, trained on"
    return (
        f"Every arm begins with the same plain text-to-video model. That {begun} without any"
        f" reference for the budget of one arm. Each arm was trained for {budget} of"
        f" {study.batch_size * study.accumulate} {shown}{noises} per process"
        f" ({study.num_processes}), on the same shards, at"
        f" {base.data.width}x{base.data.height}. It was measured on {study.cases} held-out {shown}"
        " of each kind: near-twins side by side; pairs that differ in eyes, mouth or accessory"
        " only; characters that hide each other (three on stage, one of them less than half"
        " visible); casts of three; casts of four."
    )


def _train(config: sft.SftConfig, folder: Path) -> None:
    outcome = sft.train(config, folder)
    if not outcome.finished:
        sys.exit(143)  # stopped by a signal: the next call goes on from the saved state


def last_step(folder: Path) -> int:
    """The step at which a run was last saved."""
    header = read_header(folder / "state" / "train.safetensors")
    return int(json.loads(header["position"])["step"])


def run_study(base: sft.SftConfig, study: Study, arms: Sequence[str], docs: Path) -> None:
    """All arms and seeds; the report after each."""
    most = max(num for _, num in base.data.plan)
    dist.launch(partial(sft.precompute_part, base, most), study.num_processes)
    train_plain(base, study)
    for seed in range(study.seeds):
        for arm in arms:
            result = run_arm(base, study, arm, seed)
            write_report(known_results(base, study), introduction(base, study), docs)
            print(f"{arm}, seed {seed}: reached {mean_over_kinds(result, 'reached'):.3f}",
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
    parser.add_argument("--size", choices=tuple(SIZES), default="still")
    parser.add_argument("--compile", action="store_true", help="torch.compile each arm")
    parser.add_argument("--instruments", type=Path, default=Path("runs/identity"))
    parser.add_argument("--shards", type=int, help="use so many of the recipe's shards")
    parser.add_argument(
        "--start", default="models/miniature/dit.safetensors",
        help="weights whose blocks the plain model begins with (the shipped ones), or none",
    )  # fmt: skip
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
        instruments=asked.instruments, start=None if asked.start == "none" else Path(asked.start),
    )  # fmt: skip
    torch.set_num_threads(1)
    base = study_base(asked.size, asked.compile, asked.shards)
    run_study(base, study, [known[name] for name in wanted], asked.docs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
