"""What a lossy tier skips and what it costs: `python -m bench.tiers --json`.

Held-out characters and prompts, one, two and three subjects in turns. Each video is made exactly
and at every threshold, with the same seed. For each threshold:

    skipped      share of forwards that were not computed in full
    time         CPU time of its denoising on one thread / that of the exact one
    psnr         dB of its frames against the exact ones: mean, and least
    similarity   of the subjects to their references, as `bench.identity` has it; `exact` beside it
    changed      mean and largest change of a video's similarity, either way

"0" is the exact tier. `--sheet` draws the exact video above those of the thresholds, case by case.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.program import UNUSABLE, told
from engine import flow
from engine.encodings import stack
from engine.pipeline import Engine
from engine.spec import Guidance
from engine.tiers import Run
from training import evaluate
from training.measure import Instruments

Frames = NDArray[np.uint8]
SUBJECTS = (1, 2, 3)
SHOWN = 6  # frames of a video on the sheet
COLUMNS = ("skipped", "time", "psnr", "psnr_least", "similarity", "changed", "changed_most")


@dataclass(frozen=True)
class Film:
    """A video at one threshold: frames [T, H, W, 3], forwards, seconds, the subjects' likeness."""

    frames: Frames
    asked: int
    computed: int
    seconds: float
    similarity: float


@torch.no_grad()
def film(
    engine: Engine,
    tools: Instruments,
    case: evaluate.Case,
    seed: int,
    threshold: float,
    asked: argparse.Namespace,
) -> Film:
    """The case's video, made at this threshold; 0 is exact."""
    given: dict[str, Any] = {} if asked.steps is None else {"steps": asked.steps}
    if asked.dual:
        given["guidance"] = Guidance("dual")
    spec, references = evaluate.request(engine, case.clip, given)
    batch, negative = (stack([part]) for part in engine.encode(spec, references))
    run = Run(engine.velocity, "fast" if threshold else "exact", threshold)
    begun = time.thread_time()
    latents = engine.sample(
        batch,
        negative,
        [seed],
        engine.preset.latent_shape(spec.width, spec.height, spec.num_frames),
        flow.schedule(spec.solver, spec.steps, engine.preset.defaults.shift),
        spec.guidance,
        run=run,
    )
    seconds = time.thread_time() - begun
    frames = engine.decode(latents)[0].numpy()
    score = evaluate.judge(tools, case, frames)
    return Film(frames, run.asked, run.computed, seconds, float(score.similarity_S.mean()))


def psnr(one: Frames, other: Frames) -> float:
    """dB over all pixels of a video; 99 where nothing differs by half a level on the mean."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return 99.0 if error < 1e-5 else 10 * float(np.log10(255**2 / error))


def summary(films: Sequence[Film], exact: Sequence[Film]) -> dict[str, float]:
    """One threshold's figures, see the module's text."""
    pairs = list(zip(films, exact, strict=True))
    levels = [psnr(one.frames, other.frames) for one, other in pairs]
    change = [abs(one.similarity - other.similarity) for one, other in pairs]
    return {
        "skipped": 1 - sum(f.computed for f in films) / sum(f.asked for f in films),
        "time": sum(f.seconds for f in films) / sum(f.seconds for f in exact),
        "psnr": float(np.mean(levels)),
        "psnr_least": min(levels),
        "similarity": float(np.mean([f.similarity for f in films])),
        "exact": float(np.mean([f.similarity for f in exact])),
        "changed": float(np.mean(change)),
        "changed_most": max(change),
    }


def measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All thresholds over all cases."""
    engine = Engine.load(asked.model)
    tools = Instruments.load(asked.instruments or asked.model)
    each = max(2, -(-asked.cases // len(SUBJECTS)))
    cases = [
        case
        for num in SUBJECTS
        for case in evaluate.prepare(evaluate.sample_clips(each, num), tools)
    ]
    films: dict[float, list[Film]] = {threshold: [] for threshold in (0.0, *asked.thresholds)}
    for seed, case in enumerate(track(cases, "videos", console=console)):
        for threshold, row in films.items():
            row.append(film(engine, tools, case, seed, threshold, asked))
    if asked.sheet:
        draw(films, asked.sheet)
    rows = {f"{threshold:g}": summary(row, films[0.0]) for threshold, row in films.items()}
    return {"thresholds": rows, "videos": len(cases), "dual": asked.dual}


def draw(films: dict[float, list[Film]], path: Path) -> None:
    """Every case as rows of frames: exact, then each threshold."""
    rows = []
    for row in zip(*films.values(), strict=True):
        for one in row:
            moments = np.linspace(0, len(one.frames) - 1, SHOWN).round().astype(int)
            rows.append(np.concatenate([one.frames[t] for t in moments], 1))
        rows.append(np.full((4, *rows[-1].shape[1:]), 255, np.uint8))
    Image.fromarray(np.concatenate(rows)).save(path)


def table(result: dict[str, Any]) -> Table:
    """One row per threshold."""
    shown = Table("threshold", *COLUMNS, title=f"{result['videos']} videos")
    for threshold, row in result["thresholds"].items():
        shown.add_row(threshold, *(f"{row[name]:.3g}" for name in COLUMNS))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.tiers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--thresholds", default="0.05,0.1,0.2", help="of `fast`, with commas")
    parser.add_argument("--cases", type=int, default=12, help="videos, in all (12)")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (the model's own)")
    parser.add_argument("--dual", action="store_true", help="three forwards a step")
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--instruments", type=Path, default=None, help="folder (the model's)")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    try:
        asked.thresholds = [float(part) for part in asked.thresholds.split(",")]
    except ValueError:
        parser.error(f"--thresholds: numbers with commas, not {asked.thresholds!r}")
    if not all(threshold > 0 for threshold in asked.thresholds):
        parser.error("--thresholds: above 0, which is always there")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when a model folder cannot be used."""
    asked = arguments(given)
    result = told(lambda console: measure(asked, console), table, asked.json)
    return UNUSABLE if result is None else 0


if __name__ == "__main__":
    sys.exit(main())
