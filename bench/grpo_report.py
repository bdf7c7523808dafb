"""What the arms of `bench.grpo` have in common and in what they differ, case by case.

A result is what `bench.grpo.run_arm` returns: arm, seed, cpu_s, figures by name, and `rows`, of
each figure one number for each case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.heldout import FIGURES

Result = dict[str, Any]
STILL = "still_"
OF_STILLS = ("oracle_identity", "worst", "similarity", "copy_paste", "reward")
ALL = (*FIGURES, *(f"{STILL}{name}" for name in OF_STILLS))


def by_arm(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Results by arm and seed, arms in the order in which they first come."""
    found: dict[str, dict[int, Result]] = {}
    for result in results:
        found.setdefault(result["arm"], {})[result["seed"]] = result
    return found


def difference(
    arm: dict[int, Result], base: dict[int, Result], name: str
) -> dict[str, float] | None:
    """Arm minus base over the seeds that both have, None where there is none.

    se: standard error over cases, each the mean over its seeds. se_seeds: over the seeds' means
    (NaN for one). t: the difference in units of the larger.
    """
    seeds = sorted(arm.keys() & base.keys())
    if not seeds:
        return None
    pairs = [(arm[seed]["rows"][name], base[seed]["rows"][name]) for seed in seeds]
    gap_SC = np.array([np.subtract(a, b) for a, b in pairs])
    spread = _error(gap_SC.mean(0))
    over_seeds = _error(gap_SC.mean(1))
    largest = np.nanmax([spread, over_seeds]) if not np.isnan(spread) else np.nan
    mean = float(gap_SC.mean())
    t = mean / largest if largest > 0 else float("nan")
    return {"difference": mean, "se": spread, "se_seeds": over_seeds, "t": float(t)}


def _error(values: Any) -> float:
    """Standard error of a mean; of one value it is not known."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def told(results: Sequence[Result], base: str = "sft") -> dict[str, Any]:
    """arms.{arm}.{seeds, mean, minus_sft}.{figure}: the object that the bench ends with. Numbers
    that are not known are left out."""
    arms = by_arm(results)
    found: dict[str, Any] = {}
    for arm, own in arms.items():
        values = list(own.values())
        row: dict[str, Any] = {
            "seeds": {str(seed): result["figures"] for seed, result in own.items()},
            "mean": {n: float(np.mean([r["figures"][n] for r in values])) for n in ALL},
            "cpu_s": float(np.mean([r["cpu_s"] for r in values])),
            "updates": float(np.mean([r["updates"] for r in values])),
        }
        if base in arms and arm != base:
            gaps = {n: difference(own, arms[base], n) for n in ALL}
            row["minus_sft"] = {
                n: {k: v for k, v in gap.items() if not np.isnan(v)}
                for n, gap in gaps.items() if gap is not None
            }  # fmt: skip
        found[arm] = row
    cases = len(results[0]["rows"][FIGURES[0]]) if results else 0
    return {"arms": found, "cases": cases}


def table(results: Sequence[Result]) -> str:
    """Markdown: a line for each figure, a column for each arm: the mean over its seeds, and in
    brackets the difference to `sft`, also in standard errors."""
    rows = told(results)["arms"]
    heads = [f"{arm} ({len(row['seeds'])})" for arm, row in rows.items()]
    lines = ["| figure | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for name in ALL:
        cells = []
        for row in rows.values():
            gap = row.get("minus_sft", {}).get(name, {})
            far = f" ({gap['difference']:+.3f}, {gap['t']:+.1f})" if "t" in gap else ""
            cells.append(f"{row['mean'][name]:.3f}{far}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
