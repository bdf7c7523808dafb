"""What it costs to be able to go on: `python -m bench.resume --json`; stdout is one JSON object.

Jobs with a state made and stored after every step (a folder, each file synced to the disk); of each
figure the median over the jobs, with the least and the most:

    save_s        to make and store a state: median of a job's saves
    save_of_step  the same / the median of the job's steps
    save_of_job   the same / the job's seconds without its saves
    paced         of jobs that save as `workers.pace` says: all saves / the seconds without them
    load_s        to read a state back and verify it

    bytes         of a state
    paced_saves   how many each of those jobs made
    equal         whether jobs that went on from a state's bytes ended in the same frames
    full          832x480 and 81 frames, by preset and solver: bytes by arithmetic, and save_s of as
                  many bytes here, from the CPU's memory

Seconds are the clock's, for a disk is waited for: on a busy machine all of them are longer.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.program import UNUSABLE, told
from engine.flow import History
from engine.pipeline import Engine
from engine.presets import PRESETS
from engine.sample import Step
from engine.spec import SOLVERS, Reference, Spec
from engine.state import DenoiseState, Origin
from engine.tiers import NEW
from engine.video import Video
from service.blobs import FolderBlobs
from workers.pace import Pace

CAST = [Reference("anna", 64, 64, bytes(range(256)) * 48)]
FULL = ("wan-1.3b", "wan-14b")
FULL_SIZE = (832, 480, 81)
TENSORS = {"euler": 1, "unipc": 4}  # of a state; unipc: two predictions, and where it stood

Save = Callable[[DenoiseState], None]


@dataclass(frozen=True)
class Job:
    """Seconds of a job's saves, of its steps and of all but the saves; its video."""

    saves: list[float]
    steps: list[float]
    seconds: float
    video: Video


def job(engine: Engine, spec: Spec, save: Save, pace: Pace | None = None) -> Job:
    """A whole job that saves after every step; with a pace, when that says so."""
    saves: list[float] = []
    steps: list[float] = []
    begun = since = time.monotonic()

    def on_state(state: DenoiseState) -> None:
        nonlocal since
        now = time.monotonic()
        steps.append(now - since)
        if pace is None or pace.due(state.step.done, state.step.num_steps):
            save(state)
            saves.append(time.monotonic() - now)
            if pace is not None:
                pace.saved(saves[-1])
        since = time.monotonic()

    video = engine.generate(spec, CAST, on_state=on_state)
    # The first step's clock ran while the request was encoded.
    return Job(saves, steps[1:], time.monotonic() - begun - sum(saves), video)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def seconds(work: Callable[[], object]) -> float:
    """Of the clock, that it takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def measure(asked: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """All figures of the model's own jobs, and of states of full size."""
    blobs = FolderBlobs(folder)
    kept: list[bytes] = []

    def save(state: DenoiseState) -> None:
        kept.append(state.to_bytes())
        blobs.put("t/local/videos/bench/states", kept[-1], ".safetensors")

    engine = Engine.load(asked.model)
    spec = Spec.of(engine.preset, "@anna waves in a meadow", ("anna",), solver=asked.solver)
    if asked.steps is not None:
        spec = Spec.from_json(spec.to_json() | {"steps": asked.steps})
    engine.generate(spec, CAST)  # what is slow the first time is not measured
    jobs, paced = [], []
    for _ in track(range(asked.rounds), "jobs", console=console):
        kept.clear()
        jobs.append(job(engine, spec, save))
        states = list(kept)
        paced.append(job(engine, spec, save, Pace()))
    again = [
        engine.generate(spec, CAST, resume=DenoiseState.from_bytes(data)).frames
        for data in states[:: max(1, len(states) // 3)]
    ]
    costs = [statistics.median(one.saves) for one in jobs]
    return {
        "bytes": len(states[-1]),
        "save_s": spread(costs),
        "save_of_step": spread(
            [cost / statistics.median(one.steps) for cost, one in zip(costs, jobs, strict=True)]
        ),
        "save_of_job": spread([cost / one.seconds for cost, one in zip(costs, jobs, strict=True)]),
        "paced": spread([sum(one.saves) / one.seconds for one in paced]),
        "paced_saves": [len(one.saves) for one in paced],
        "load_s": spread([seconds(lambda: DenoiseState.from_bytes(states[-1])) for _ in jobs]),
        "equal": all(np.array_equal(frames, jobs[0].video.frames) for frames in again),
        "solver": spec.solver,
        "steps": spec.steps,
        "full": {
            name: {solver: full(name, solver, save, asked.rounds) for solver in SOLVERS}
            for name in FULL
        },
    }


def full(name: str, solver: str, save: Save, rounds: int) -> dict[str, Any]:
    """A state of a published model's usual video in fp32: its bytes, and what saving it takes."""
    shape = (1, *PRESETS[name].latent_shape(*FULL_SIZE))
    x, *others = torch.randn(TENSORS[solver], *shape).unbind()
    history = History(tuple(others[:-1]), others[-1]) if others else History()
    state = DenoiseState(Origin(name, "", "", "", ""), Step(1, 50, x, history), NEW)
    return {
        "bytes": 4 * TENSORS[solver] * math.prod(shape),
        "save_s": spread([seconds(lambda: save(state)) for _ in range(rounds)]),
    }


def table(result: dict[str, Any]) -> Table:
    """One row per figure."""
    title = f"{result['bytes']} bytes, {result['solver']}, {result['steps']} steps"
    shown = Table("figure", "median", "least", "most", title=title)
    rows = {name: row for name, row in result.items() if name != "full" and isinstance(row, dict)}
    for name, solvers in result["full"].items():
        rows |= {f"{name} {key}, {row['bytes']} B": row["save_s"] for key, row in solvers.items()}
    for name, row in rows.items():
        shown.add_row(name, *(f"{value:.3g}" for value in row.values()))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.resume",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="jobs of each kind (5)")
    parser.add_argument("--solver", choices=SOLVERS, default="unipc", help="unipc: the larger")
    parser.add_argument("--steps", type=int, default=None, help="denoising steps (the model's own)")
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    if asked.rounds < 1:
        parser.error("--rounds: at least 1")
    return asked


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 when a job that went on ended otherwise, 2 when the model is unusable."""
    asked = arguments(given)
    with tempfile.TemporaryDirectory(prefix="troupe-", dir=".") as folder:
        result = told(lambda console: measure(asked, Path(folder), console), table, asked.json)
    return UNUSABLE if result is None else int(not result["equal"])


if __name__ == "__main__":
    sys.exit(main())
