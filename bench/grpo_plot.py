"""A picture of what `bench.grpo` found.

Left: what training is rewarded with, update by update, against the control whose rewards are drawn
by lot: both are asked for the same casts from the same noise, so their difference is the weights'.
Right: held-out figures, of single frames and of videos, against the shipped model's, with standard
errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.grpo_report import STILL, Result, by_arm, difference
from training.report import read_log
from training.rewards.chance import TRUE
from training.rewards.door import TOTAL

CONTROL = "grpo_chance"
FOUR = ("oracle_identity", "worst", "similarity", "copy_paste")
SHOWN = (*(f"{STILL}{name}" for name in FOUR), *FOUR, "motion")
MEAN_OF = 10  # updates


def gained(folder: Path, control: Path) -> list[float]:
    """Reward minus the control's, update by update, of two runs' logs."""
    own, other = _rewards(folder), _rewards(control)
    return [own[step] - other[step] for step in sorted(own.keys() & other.keys())]


def _rewards(folder: Path) -> dict[int, float]:
    rows = read_log(folder / "log.jsonl")
    return {int(row["step"]): row.get(TRUE, row[TOTAL]) for row in rows if TOTAL in row}


def draw(results: Sequence[Result], folder: Path, path: Path) -> None:
    """The picture, as PNG. folder: of the study, with each arm's and seed's log."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    arms = by_arm(results)
    for seed in sorted(arms.get("grpo", {}).keys() & arms.get(CONTROL, {}).keys()):
        gains = gained(folder / "grpo" / str(seed), folder / CONTROL / str(seed))
        kernel = np.ones(min(MEAN_OF, len(gains))) / min(MEAN_OF, len(gains))
        steps = np.arange(len(kernel), len(gains) + 1)
        left.plot(steps, np.convolve(gains, kernel, "valid"), label=f"seed {seed}")
    left.axhline(0, color="0.7", lw=1)
    left.set(xlabel="update", title=f"reward minus the control's, mean of {MEAN_OF} updates")
    if left.lines[:-1]:
        left.legend(frameon=False)
    _compare(right, arms)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110)


def _compare(axes: Any, arms: dict[str, dict[int, Result]]) -> None:
    """Each arm's difference to the shipped model, figure by figure."""
    others = [arm for arm in arms if arm not in ("sft", "sft_tuned")]
    for place, arm in enumerate(others):
        gaps = [difference(arms[arm], arms.get("sft", {}), name) for name in SHOWN]
        known = [(at, gap) for at, gap in enumerate(gaps) if gap is not None]
        at = [x + 0.8 * (place + 0.5) / len(others) - 0.4 for x, _ in known]
        errors = [np.nanmax([gap["se"], gap["se_seeds"]]) for _, gap in known]
        right = [gap["difference"] for _, gap in known]
        axes.errorbar(at, right, errors, fmt="o", ms=4, capsize=2, label=arm)
    axes.axhline(0, color="0.7", lw=1)
    names = [name.replace("oracle_identity", "oracle").replace("_", "\n") for name in SHOWN]
    axes.set_xticks(range(len(SHOWN)), names)
    axes.set_title("held-out figures minus the shipped model's, ± standard error")
    if others:
        axes.legend(frameon=False, fontsize=8)
