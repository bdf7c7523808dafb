"""What a judge's word is worth: `python -m bench.likeness --json`.

Held-out characters and prompts with one, two and three subjects; several candidates of each, with
the seeds that a job would give them. The judge (`engine.likeness`) sees frames and pictures alone,
`training.measure` knows the script as well. For each number of subjects:

    rank         Spearman's ρ over all clips: the judge's mean similarity against the true one;
                 `overall` against the same figure made of what the script says, and against the
                 true mean similarity
    off          largest difference between the judge's and the true similarity of a clip
    missing      share of subjects that the judge calls missing, that the script does (nobody found
                 at all), and where both say the same; factors that the oracle reads right of those
                 it calls missing, and of all others
    swapped      share that the judge calls swapped, that the script does, and that both do
    best         true similarity (mean of the subjects, and worst), factors and swaps of candidate
                 0, and what the likest of all has more: mean and standard error over cases.
                 `most`: what the best of each figure has more. Similarity is
                 read by the judge's own encoder; the oracle has other weights (though the
                 encoder's training began with its trunk)
    overall      its 10th, 50th and 90th percentile over single videos, and over the likest

`controls` are clips that nobody generated: `truth` (upper, and false alarms), `strangers` (others'
pictures: lower), `absent` (one more picture, of somebody who is not there), `doubled` (the second
looks like the first), `traded` (two trade looks in the middle), `exchanged` (two in each other's
part all along, which cannot be seen). `cost` is the judge's CPU time / that of making the video.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from bench.program import UNUSABLE, told
from engine.candidates import best, seed_of
from engine.errors import CheckpointError
from engine.likeness import FLAWED, Judge, Likeness, load_judge
from engine.pipeline import Engine
from engine.spec import Reference
from training import evaluate
from training.measure import Instruments, Score, exchanged
from training.world.clip import Clip
from training.world.render import render_clip

Frames = NDArray[np.uint8]
SUBJECTS = (1, 2, 3)
COLUMNS = ("rank.similarity", "rank.overall", "off", "missing.judge", "best.base", "best.gain")


@dataclass(frozen=True)
class Told:
    """One clip: what the judge says, and what is true."""

    judge: Likeness
    true: Score

    def overall(self) -> float:
        """`Likeness.overall` of the script's figures."""
        flawed_S = self.true.missing_S | self.true.swapped_S
        worth_S = np.maximum(self.true.similarity_S, 0) * np.where(flawed_S, FLAWED, 1.0)
        return float(worth_S.min())

    def similarities(self) -> list[float]:
        """The judge's, of each subject."""
        return [one.similarity for one in self.judge.subjects]


@torch.no_grad()
def measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All cases of all numbers of subjects."""
    judge = load_judge(asked.model)
    if judge is None:
        raise CheckpointError(f"{asked.model} brings no judge: no detector or no identity encoder")
    engine, tools = Engine.load(asked.model), Instruments.load(asked.model)
    asked.steps = asked.steps or engine.preset.defaults.steps
    generate = evaluate.from_engine(engine, steps=asked.steps, bf16=asked.bf16)
    cost = _cost(engine, judge, asked.steps)
    tables, controls = {}, {}
    for num in SUBJECTS:
        clips = evaluate.sample_clips(asked.cases, num)
        cases = evaluate.prepare(clips, tools)
        controls[str(num)] = _controls(judge, clips)
        told = []
        for index, case in enumerate(track(cases, f"{num} subjects", console=console)):
            frames = made_of(asked, generate, engine.digest, case.clip, index)
            told.append([
                Told(judge.score(one, pictures(case.clip)), evaluate.judge(tools, case, one))
                for one in frames
            ])  # fmt: skip
        tables[str(num)] = summary(told)
    return {
        "subjects": tables,
        "controls": controls,
        "cost": cost,
        "cases": asked.cases,
        "candidates": asked.candidates,
        "steps": asked.steps,
        "model": engine.digest,
    }


def pictures(clip: Clip) -> list[Reference]:
    """The clip's pictures under the names of its caption."""
    return [
        Reference.from_image(name, Image.fromarray(picture))
        for name, picture in zip(clip.caption.names, clip.references, strict=True)
    ]


def made_of(
    asked: argparse.Namespace, generate: evaluate.Generate, digest: str, clip: Clip, index: int
) -> Frames:
    """The candidates of a case [N, T, H, W, 3], from `--keep` where they are there already."""
    name = f"{digest[:12]}-{asked.steps}-{len(clip.scene.cast)}-{index}-{asked.candidates}.npy"
    if asked.keep and (asked.keep / name).is_file():
        return np.load(asked.keep / name)
    seeds = [seed_of(index, k) for k in range(asked.candidates)]
    frames = generate([clip] * asked.candidates, seeds)
    if asked.keep:
        asked.keep.mkdir(parents=True, exist_ok=True)
        np.save(asked.keep / name, frames)
    return frames


def _cost(engine: Engine, judge: Judge, steps: int, rounds: int = 3) -> dict[str, float]:
    """Of a video with two subjects, in turns with making it; the first round warms up."""
    clip = evaluate.sample_clips(2, 2)[0]
    spec, references = evaluate.request(engine, clip, {"steps": steps})
    making, judging = [], []
    for _ in range(rounds + 1):
        begun = time.thread_time()
        video = engine.generate(spec, references)
        made = time.thread_time()
        judge.score(video.frames, references)
        making.append(made - begun)
        judging.append(time.thread_time() - made)
    return {"judge_share": float(np.median(judging[1:]) / np.median(making[1:]))}


# --- figures ------------------------------------------------------------------------------------


def summary(told: Sequence[Sequence[Told]]) -> dict[str, Any]:
    """told[case][candidate] -> the figures of one number of subjects, see the module's text."""
    clips = [one for row in told for one in row]
    similarity = np.array([np.mean(one.similarities()) for one in clips])
    overall = np.array([one.judge.overall for one in clips])
    true = np.array([one.true.similarity_S.mean() for one in clips])
    counterpart = np.array([one.overall() for one in clips])
    likest = [row[best([one.judge.overall for one in row])].judge.overall for row in told]
    return {
        "rank": {
            "similarity": _rank(similarity, true),
            "overall": _rank(overall, counterpart),
            "mean": _rank(overall, true),
        },
        "off": float(np.abs(similarity - true).max()),
        "missing": _missing(clips),
        "swapped": _swapped(clips),
        "best": _best(told),
        "overall": {"single": _percentiles(overall), "likest": _percentiles(np.array(likest))},
        "strangers": float(np.mean([one.judge.strangers for one in clips])),
        "clips": len(clips),
    }


def _rank(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # Where all are equal there is no order: told as 0, as JSON has no NaN.
    return float(np.nan_to_num(spearmanr(a, b).statistic)) if np.ptp(a) and np.ptp(b) else 0.0


def _percentiles(x: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in np.percentile(x, (10, 50, 90))]


def _missing(clips: Sequence[Told]) -> dict[str, float | None]:
    judge = np.array([one.missing for told in clips for one in told.judge.subjects])
    script = np.concatenate([told.true.missing_S for told in clips])
    factors = np.concatenate([np.nanmean(told.true.factors_SF, axis=1) for told in clips])
    return {
        "judge": float(judge.mean()),
        "script": float(script.mean()),
        "same": float((judge == script).mean()),
        "factors": float(factors[judge].mean()) if judge.any() else None,
        "factors_others": float(factors[~judge].mean()) if not judge.all() else None,
    }


def _swapped(clips: Sequence[Told]) -> dict[str, float]:
    judge = np.array([one.swapped for told in clips for one in told.judge.subjects])
    script = np.concatenate([told.true.swapped_S for told in clips])
    return {
        "judge": float(judge.mean()),
        "script": float(script.mean()),
        "both": float((judge & script).mean()),
    }


def _best(told: Sequence[Sequence[Told]]) -> dict[str, float]:
    chosen = [best([one.judge.overall for one in row]) for row in told]
    figures: dict[str, float] = {}
    for prefix, figure in _TRUE.items():
        table_KN = np.array([[figure(one.true) for one in row] for row in told])
        gain = table_KN[np.arange(len(told)), chosen] - table_KN[:, 0]
        figures[f"{prefix}base"] = float(table_KN[:, 0].mean())
        figures[f"{prefix}gain"] = float(gain.mean())
        figures[f"{prefix}gain_se"] = float(gain.std(ddof=1) / np.sqrt(len(gain)))
        if prefix != "swaps_":
            figures[f"{prefix}most"] = float((table_KN.max(1) - table_KN[:, 0]).mean())
    return figures


_TRUE: dict[str, Callable[[Score], float]] = {
    "": lambda score: float(score.similarity_S.mean()),
    "worst_": lambda score: float(score.similarity_S.min()),
    "factors_": lambda score: float(np.nanmean(score.factors_SF)),
    "swaps_": lambda score: float(score.swapped_S.mean()),
}


# --- clips that nobody generated ----------------------------------------------------------------


def doubled(clip: Clip) -> Frames:
    """The second of the cast with the first one's looks."""
    first, second, *rest = clip.scene.cast
    cast = (first, replace(second, identity=first.identity), *rest)
    return render_clip(replace(clip.scene, cast=cast), *clip.frames.shape[:3])


def traded(clip: Clip) -> Frames:
    """The first two with each other's looks from the middle on."""
    half = len(clip.frames) // 2
    return np.concatenate([clip.frames[:half], exchanged(clip)[half:]])


def _controls(judge: Judge, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Of each control the mean similarity, and shares of subjects that are called missing or
    swapped; of `absent`, `doubled` and `traded` only those that are."""

    def told(frames: Frames, references: Sequence[Reference], who: slice) -> Any:
        return judge.score(frames, references).subjects[who]

    everybody, last = slice(None), slice(-1, None)
    rows: dict[str, list[Any]] = {"truth": [], "strangers": [], "absent": []}
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        own, others = pictures(clip), _renamed(pictures(other))
        rows["truth"] += told(clip.frames, own, everybody)
        rows["strangers"] += told(clip.frames, others, everybody)
        rows["absent"] += told(clip.frames, [*own, others[0]], last)
    if len(clips[0].scene.cast) > 1:
        for name, draw, who in (
            ("doubled", doubled, slice(1, 2)),
            ("traded", traded, slice(2)),
            ("exchanged", exchanged, everybody),
        ):
            rows[name] = [one for c in clips for one in told(draw(c), pictures(c), who)]
    return {
        name: {
            "similarity": float(np.mean([one.similarity for one in row])),
            "missing": float(np.mean([one.missing for one in row])),
            "swapped": float(np.mean([one.swapped for one in row])),
        }
        for name, row in rows.items()
    }


def _renamed(references: Sequence[Reference]) -> list[Reference]:
    return [replace(one, name=f"other{k}") for k, one in enumerate(references)]


# --- command line -------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> Table:
    """The figures that decide, one row per number of subjects."""
    shown = Table("subjects", *COLUMNS, title=f"{result['candidates']} candidates a case")
    for num, row in result["subjects"].items():
        values = []
        for column in COLUMNS:
            part, _, name = column.partition(".")
            values.append(row[part][name] if name else row[part])
        shown.add_row(num, *(f"{value:.3f}" for value in values))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.likeness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=20, help="per number of subjects (20)")
    parser.add_argument("--candidates", type=int, default=4, help="of each case (4)")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (the model's own)")
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--bf16", action="store_true", help="faster where bf16 is in hardware")
    parser.add_argument("--keep", type=Path, help="keep frames here, and take those that are there")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    asked = parser.parse_args(given)
    if asked.cases < 2:
        parser.error("--cases: at least 2, or there is no stranger")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when a model folder cannot be used."""
    asked = arguments(given)
    result = told(lambda console: measure(asked, console), table, asked.json)
    return UNUSABLE if result is None else 0


if __name__ == "__main__":
    sys.exit(main())
