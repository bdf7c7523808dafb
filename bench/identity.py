"""Is it them? `python -m bench.identity --json`: the last line of stdout is one JSON object.

`subjects.{1,2,3}.{similarity, upper, lower, reached, worst, swaps, missing, motion, background, …}`
over held-out identities and prompts; what each figure means is told in `training.evaluate`.
Progress goes to stderr. `--control truth|exchange|strangers|blank` measures known clips instead of
a model: what the instruments themselves are worth.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from engine.errors import TroupeError
from engine.pipeline import Engine
from training import evaluate
from training.measure import Instruments

COLUMNS = (
    "reached",
    "similarity",
    "upper",
    "lower",
    "worst",
    "worst_upper",
    "swaps",
    "missing",
    "motion",
    "background",
    "factors",
    "copy_paste",
)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.identity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=100, help="per number of subjects (100)")
    parser.add_argument("--seeds", type=int, default=3, help="clips per case (3)")
    parser.add_argument("--subjects", default="1,2,3", help="numbers of subjects (1,2,3)")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (the model's own)")
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--instruments", type=Path, default=None, help="folder (the model's)")
    parser.add_argument("--control", choices=sorted(evaluate.CONTROLS))
    parser.add_argument("--batch", type=int, default=evaluate.BATCH, help="clips at once (16)")
    parser.add_argument("--bf16", action="store_true", help="faster where bf16 is in hardware")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when a model folder cannot be used."""
    asked = arguments(given)
    console = Console(stderr=True)
    try:
        result = measure(asked, console)
    except (TroupeError, ValueError) as error:
        console.print(f"[red]{error}[/red]")
        return 2
    console.print(table(result))
    if asked.json:
        print(json.dumps(result))
    return 0


def measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Generates, measures, and adds how long it took and with what."""
    begun = time.monotonic()
    subjects = [int(n) for n in asked.subjects.split(",")]
    tools = Instruments.load(asked.instruments or asked.model)
    sheet = _Sheet(asked.sheet)
    result = evaluate.report(
        _generator(asked),
        tools,
        num_cases=asked.cases,
        seeds=asked.seeds,
        subjects=subjects,
        batch=asked.batch,
        on_frames=sheet,
        console=console,
    )
    sheet.write()
    result["model"] = asked.control or str(asked.model)
    result["steps"] = asked.steps
    result["seconds"] = round(time.monotonic() - begun, 1)
    return result


def _generator(asked: argparse.Namespace) -> evaluate.Generate:
    if asked.control:
        return evaluate.CONTROLS[asked.control]
    return evaluate.from_engine(Engine.load(asked.model), steps=asked.steps, bf16=asked.bf16)


class _Sheet:
    """Keeps a few clips of every number of subjects and draws them at the end."""

    def __init__(self, path: Path | None, rows: int = 5) -> None:
        self.path, self.rows = path, rows
        self.cases: list[evaluate.Case] = []
        self.frames: list[NDArray[np.uint8]] = []
        self.kept: dict[int, int] = {}

    def __call__(self, cases: Sequence[evaluate.Case], frames: NDArray[np.uint8]) -> None:
        for case, clip_frames in zip(cases, frames, strict=True):
            num = len(case.clip.scene.cast)
            if self.kept.get(num, 0) < self.rows:
                self.kept[num] = self.kept.get(num, 0) + 1
                self.cases.append(case)
                self.frames.append(clip_frames)

    def write(self) -> None:
        if self.path is not None:
            frames = np.stack(self.frames)
            evaluate.draw_sheet(self.cases, frames, str(self.path), rows=len(self.cases))


def table(result: dict[str, Any]) -> Table:
    """The figures that decide, one row per number of subjects."""
    shown = Table(title=f"{result['model']}: {result['cases']} cases, {result['seeds']} seeds")
    for name in ("subjects", *COLUMNS):
        shown.add_column(name, justify="right")
    for num, row in result["subjects"].items():
        shown.add_row(num, *(f"{row[name]:.3f}" for name in COLUMNS))
    return shown


if __name__ == "__main__":
    sys.exit(main())
