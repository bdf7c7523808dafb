"""The ablation study's table, paired differences and plot, out of its results.

A result is what `bench.ablation.run_arm` returns: arm, seed, steps, minutes, and for each kind of
scene its figures by name.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def mean_over_kinds(result: dict[str, Any], measure: str) -> float:
    """One figure of a result, each kind of scene counting alike."""
    return statistics.fmean(result["kinds"][kind][measure] for kind in result["kinds"])


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def by_arm(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of each arm, arms in the order in which they first come."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["arm"], []).append(result)
    return found


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Markdown: one row per arm; mean and standard deviation over seeds."""
    names, kinds = ("reached", "worst", "swaps", "missing"), tuple(results[0]["kinds"])
    head = ["arm", "seeds", "steps", *names, *(f"reached: {kind}" for kind in kinds)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for arm, found in by_arm(results).items():
        cells = [arm, str(len(found)), str(round(statistics.fmean(r["steps"] for r in found)))]
        for name in names:
            cells.append(_cell([mean_over_kinds(result, name) for result in found]))
        for kind in kinds:
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


def write_report(results: Sequence[dict[str, Any]], introduction: str, docs: Path) -> None:
    """docs/ablation.md, which begins with what was done, and docs/ablation.png."""
    lines = [
        "# Does each stage earn its place?",
        "",
        introduction,
        "",
        "`reached` is the share of the way from a random other identity to the truth; `swaps` the"
        " share of subjects in whose place another one of the cast is seen. Figures are means ±"
        " standard deviation over seeds.",
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
