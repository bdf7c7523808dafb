"""Is it them? `python -m bench.identity --json`: the last line of stdout is one JSON object.

`subjects.{1,2,3}.{similarity, upper, lower, reached, worst, swaps, missing, motion, background, …}`
over held-out identities and prompts; what each figure means is told in `training.evaluate`.
Progress goes to stderr. `--control truth|exchange|strangers|blank` measures known clips instead of
a model: what the instruments themselves are worth; with `--strength .5` what the model makes of
them from half of the way on, which tells where it loses a likeness (0: the codec alone).
`--dit runs/NAME/dit.safetensors --still` is a quick look at a training: its transformer among the
model's other parts, on single frames.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from engine.checkpoint import load_strict
from engine.errors import TroupeError
from engine.evaluation import PAINTERS
from engine.folders import sha256
from engine.pipeline import Engine
from training import evaluate
from training.measure import Instruments, Score

Done = tuple[evaluate.Job, list[Score], NDArray[np.uint8] | None]

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
    parser.add_argument("--dit", type=Path, help="another transformer than the model's own")
    parser.add_argument("--still", action="store_true", help="single frames, no motion")
    parser.add_argument("--instruments", type=Path, default=None, help="folder (the model's)")
    parser.add_argument("--control", choices=sorted(evaluate.CONTROLS))
    parser.add_argument("--strength", type=float, help="redraw the control, 0 to 1")
    parser.add_argument("--batch", type=int, default=evaluate.BATCH, help="clips at once (16)")
    parser.add_argument("--workers", type=int, default=1, help="processes, one thread each (1)")
    parser.add_argument("--bf16", action="store_true", help="faster where bf16 is in hardware")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here (PNG)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when a model folder cannot be used."""
    asked = arguments(given)
    # A file or a pipe has no width: the table then gets the room that it needs.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 160)
    try:
        result = measure(asked, console)
    except (TroupeError, ValueError) as error:
        console.print(f"[red]{error}[/red]")
        return 2
    console.print(table(result))
    if asked.json:
        print(json.dumps(result))
    return 0


class Bench:
    """One process's part: instruments, a generator, and the cases it has prepared."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.tools = Instruments.load(asked.instruments or asked.model)
        self.generate = _generator(asked)
        self.prepared: dict[int, list[evaluate.Case]] = {}

    def cases(self, num_subjects: int) -> list[evaluate.Case]:
        """All cases of a number of subjects, measured at the truth once."""
        if num_subjects not in self.prepared:
            clips = evaluate.sample_clips(self.asked.cases, num_subjects, still=self.asked.still)
            self.prepared[num_subjects] = evaluate.prepare(clips, self.tools)
        return self.prepared[num_subjects]

    def run(self, job: evaluate.Job) -> Done:
        """One batch. Frames come back only where a sheet shows them."""
        scores, frames = evaluate.run_job(
            job, self.generate, self.tools, self.cases(job.num_subjects)
        )
        shown = self.asked.sheet and job.seed == 0 and job.start == 0
        return job, scores, frames if shown else None


def measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Generates, measures, and adds how long it took and with what."""
    if asked.still and asked.control in ("exchange", "strangers"):
        raise ValueError(f"--control {asked.control}: shows whole clips only, not --still")
    if asked.strength is not None and (not asked.control or not 0 <= asked.strength <= 1):
        raise ValueError("--strength: from 0 to 1, of the clips that --control names")
    begun = time.monotonic()
    subjects = [int(n) for n in asked.subjects.split(",")]
    bench = Bench(asked)
    todo = evaluate.jobs(asked.cases, asked.seeds, subjects, asked.batch)
    done = list(_with_bar(_run(bench, todo), asked.cases * asked.seeds * len(subjects), console))
    tables = {}
    for num in subjects:
        scores = [_in_order(done, num, seed) for seed in range(asked.seeds)]
        tables[str(num)] = evaluate.summarise(scores, bench.cases(num))
    if asked.sheet:
        _draw(asked.sheet, bench, done)
    return {
        "subjects": tables,
        "cases": asked.cases,
        "seeds": asked.seeds,
        "model": asked.control or str(asked.dit or asked.model),
        "strength": asked.strength,
        "redrawn_by": None if asked.strength is None else str(asked.dit or asked.model),
        "still": asked.still,
        **_painters(asked),
        "steps": asked.steps,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _painters(asked: argparse.Namespace) -> dict[str, str | None]:
    """Whose figures these are, as sha256 of the files: `training.publish` ships no others'."""
    if asked.control:
        return {"dit": None}
    files = {part: asked.model / name for part, name in PAINTERS.items()}
    files |= {} if asked.dit is None else {"dit": asked.dit}
    return {part: sha256(path) for part, path in files.items() if path.exists()}


_HELD: dict[str, Bench] = {}
"""A worker process's own Bench, under "bench"."""


def _begin(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    _HELD["bench"] = Bench(asked)


def _work(job: evaluate.Job) -> Done:
    return _HELD["bench"].run(job)


def _run(bench: Bench, todo: Sequence[evaluate.Job]) -> Iterator[Done]:
    """The jobs as they are finished, here or in worker processes."""
    if bench.asked.workers == 1:
        yield from map(bench.run, todo)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(bench.asked.workers, _begin, (bench.asked,)) as pool:
        yield from pool.imap_unordered(_work, todo)


def _with_bar(done: Iterable[Done], total: int, console: Console) -> Iterator[Done]:
    with Progress(console=console) as bar:
        task = bar.add_task("clips", total=total)
        for job, scores, frames in done:
            bar.advance(task, len(scores))
            yield job, scores, frames


def _in_order(done: Sequence[Done], num_subjects: int, seed: int) -> list[Score]:
    mine = [d for d in done if (d[0].num_subjects, d[0].seed) == (num_subjects, seed)]
    return [score for _, row, _ in sorted(mine, key=lambda d: d[0].start) for score in row]


def _generator(asked: argparse.Namespace) -> evaluate.Generate:
    known = evaluate.CONTROLS[asked.control] if asked.control else None
    if known and asked.strength is None:
        return known
    engine = Engine.load(asked.model)
    if asked.dit:
        load_strict(engine.dit, asked.dit)
    strength = 1.0 if asked.strength is None else asked.strength
    return evaluate.from_engine(
        engine, steps=asked.steps, bf16=asked.bf16, begin=known, strength=strength
    )


def _draw(path: Path, bench: Bench, done: Sequence[Done], rows: int = 5) -> None:
    """The first few cases of every number of subjects, one sheet."""
    kept = sorted(
        ((job, frames) for job, _, frames in done if frames is not None),
        key=lambda pair: pair[0].num_subjects,
    )
    cases = [
        case
        for job, frames in kept
        for case in bench.cases(job.num_subjects)[: min(rows, len(frames))]
    ]
    shown = np.concatenate([frames[:rows] for _, frames in kept])
    evaluate.draw_sheet(cases, shown, str(path), rows=len(cases))


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
