"""What a run shows of itself: a progress bar or plain lines, log.jsonl, curves.png."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def read_log(path: Path) -> list[dict[str, float]]:
    """Lines of a log.jsonl; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Report:
    """Collects the numbers of a run. Only the first process of a run is `active`."""

    def __init__(self, folder: Path, name: str, active: bool = True) -> None:
        self.folder, self.name, self.active = folder, name, active
        self.log = folder / "log.jsonl"
        self.sums: dict[str, float] = defaultdict(float)
        self.num_summed = 0
        self.spent_s = 0.0
        self.pending: list[dict[str, float]] = []
        self.bar: Progress | None = None
        self.console = Console(file=sys.stdout, highlight=False, soft_wrap=True)

    def begin(self, step: int, total: int | None) -> None:
        """Forget the log after `step` (it was written after the last save) and show the bar."""
        if not self.active:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_log(self.log) if row["step"] <= step]
        self.log.write_text("".join(json.dumps(row) + "\n" for row in kept))
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
                console=self.console,
            )
            self.bar.add_task(self.name, total=total, completed=step, text="")
        word = "resumes" if step else "starts"
        self.console.print(f"{self.name}: {word} at step {step} of {total or 'a time budget'}")

    def __enter__(self) -> Report:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None
    ) -> None:
        self.flush()
        if self.bar is not None:
            self.bar.stop()

    def add(
        self, step: int, values: dict[str, float], took_s: float, every: int, left: int | None
    ) -> None:
        """One update's numbers; a line with their means every `every` updates."""
        for name, value in values.items():
            self.sums[name] += value
        self.num_summed += 1
        self.spent_s += took_s
        if not self.active or step % max(every, 1):
            return
        row = {name: total / self.num_summed for name, total in self.sums.items()}
        row["steps_per_s"] = self.num_summed / max(self.spent_s, 1e-9)
        row |= where_time_goes(row)
        self.sums.clear()
        self.num_summed, self.spent_s = 0, 0.0
        self.pending.append({"step": step, "time": round(time.time(), 1)} | row)
        self.flush()
        self._show(step, row, left)

    def note(self, step: int, values: dict[str, float]) -> None:
        """Numbers outside the steps, from an evaluation."""
        self.pending.append({"step": step, "time": round(time.time(), 1)} | values)
        self.flush()
        if self.active:
            self.console.print(f"{self.name} {step}: {_words(values)}")

    def _show(self, step: int, row: dict[str, float], left: int | None) -> None:
        rate = row["steps_per_s"]
        if self.bar is not None:
            text = f"loss {row['loss']:.4f}  {rate:.2f} it/s"
            total = None if left is None else step + left
            self.bar.update(self.bar.task_ids[0], completed=step, total=total, text=text)
            return
        rest = "" if left is None else f"  left {left / max(rate, 1e-9) / 60:.1f} min"
        shown = {k: v for k, v in row.items() if k != "steps_per_s"}
        self.console.print(f"{self.name} {step}: {_words(shown)}  {rate:.2f} it/s{rest}")

    def flush(self) -> None:
        if self.active and self.pending:
            with open(self.log, "a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in self.pending))
        self.pending.clear()

    def draw(self) -> None:
        if self.active:
            draw_curves(read_log(self.log), self.folder / "curves.png", self.name)


def where_time_goes(row: dict[str, float]) -> dict[str, float]:
    """Of steps that tell `rollout_s` and `reward_s`: each one's share of the time, what is left for
    the update, and rollouts a second."""
    if not row.keys() >= {"rollout_s", "reward_s", "rollouts"}:
        return {}
    rate = row["steps_per_s"]
    shares = {f"share_{name}": row[f"{name}_s"] * rate for name in ("rollout", "reward")}
    rest = max(1 - sum(shares.values()), 0.0)
    return shares | {"share_update": rest, "rollouts_per_s": row["rollouts"] * rate}


def _words(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def smooth(values: list[float], span: int) -> list[float]:
    """Exponential mean over about `span` points, unbiased at the start."""
    keep, mean, weight, smoothed = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + value, keep * weight + 1
        smoothed.append(mean / weight)
    return smoothed


def draw_curves(rows: list[dict[str, float]], path: Path, title: str) -> None:
    """Every logged value over the steps, thin, and its running mean, thick; one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({n for row in rows for n in row} - {"step", "time"}, key=_importance)
    if not names:
        return
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.7 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, name in enumerate(names, start=1):
        axis = figure.add_subplot(lines, columns, place)
        points = [(row["step"], row[name]) for row in rows if name in row]
        steps, values = [p[0] for p in points], [p[1] for p in points]
        axis.plot(steps, values, linewidth=0.6, alpha=0.35)
        axis.plot(steps, smooth(values, max(1, len(values) // 30)), linewidth=1.6)
        axis.set_title(name, fontsize=9)
        axis.grid(alpha=0.3)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, dpi=80, format="png")
    temporary.replace(path)


def _importance(name: str) -> tuple[int, str]:
    order = {"loss": 0, "grad_norm": 98, "rate": 99, "steps_per_s": 100}
    return order.get(name, 1), name
