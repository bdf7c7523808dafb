"""`python -m bench.overhead`: what the service adds to a job, from the POST to the committed video.

    service  from before the POST (one picture, as a form) to `finished_ms` of the ledger's record:
             what the client sends, the gateway, the decoding child, the queue, and one worker with
             all that it does: heartbeats, saved states, the judge, mp4, mark and signature, files
    bare     `Engine.generate` of the same request in this process, to its frames

The same model, one thread each, both warm (the request's encodings are kept by both), in turn; the
frames must be equal. The ledger's clock is this machine's. A ratio by the clock needs a quiet
machine; `cpu` is the same by the time that processors spent on the two: all processes of the
service against this one.

The last line is a JSON object: `ratio`, `cpu`, `overhead_ms`, `bare_s` and `service_s` (median,
least and most over the rounds); `added_s`, the seconds of what only the service does, by its own
clocks (`around`, and the stages `fetch` and `store`), and `added`, 1 + these over the bare median,
which a busy machine disturbs least; `stages`, seconds of each in the service and bare, by the
worker's own clock; `around`, seconds from the POST to the record, from there to the start, and from
the start to the end beyond the stages; `store`, what its stage `store` consists of, each made
alone; `equal`, and `met`: added at most 1.02.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from PIL import Image

from bench.resume import seconds, spread
from bench.stage import Stage, stage
from engine.likeness import load_judge
from engine.pipeline import Engine, Progress
from engine.spec import Reference, Spec
from engine.video import Video, picture_bytes
from service.blobs import FolderBlobs
from service.jobs import Job
from service.refs import ref_of
from workers.provenance import Origin, Provenance

AIM = 1.02
JOB_S = 15.0  # between the miniature's usual 3 s and the minute of a small model on a card
NAMES = ("gateway-1", "worker-1", "ledger", "broker", "reaper")
PIXELS = bytes(range(256)) * 48


@dataclass(frozen=True)
class Turn:
    """One job, one way: seconds by the clock and of the processors, those of its stages, and the
    sha256 of its frames."""

    clock_s: float
    cpu_s: float
    stages: dict[str, float]
    frames: str


class Bare:
    """The engine alone."""

    def __init__(self, model: Path) -> None:
        torch.set_num_threads(1)
        self.engine = Engine.load(model)
        self.references = [Reference("anna", 64, 64, PIXELS)]
        self.video: Video | None = None

    def spec(self, seed: int, steps: int) -> Spec:
        """What the gateway makes of the same request."""
        return Spec.of(self.engine.preset, "@anna waves", ("anna",), seed=seed, steps=steps)

    def turn(self, seed: int, steps: int) -> Turn:
        """One job."""
        marks: list[tuple[str, float]] = []

        def mark(progress: Progress) -> None:
            if not marks or marks[-1][0] != progress.stage:
                marks.append((progress.stage, time.monotonic()))

        begin, cpu = time.monotonic(), time.process_time()
        self.video = self.engine.generate(self.spec(seed, steps), self.references, mark)
        end = time.monotonic()
        ends = [*(at for _, at in marks[1:]), end]
        stages = {name: over - at for (name, at), over in zip(marks, ends, strict=True)}
        return Turn(end - begin, time.process_time() - cpu, stages, self.video.sha256())


class Served:
    """The same through the service."""

    def __init__(self, place: Stage) -> None:
        self._place = place
        self._client = httpx.Client(base_url=place.urls[0], timeout=60)
        self.around: list[dict[str, float]] = []

    def turn(self, seed: int, steps: int) -> Turn:
        """One job."""
        files = [("images", ("anna.png", picture(), "image/png"))]
        data = {"prompt": "@anna waves", "seed": str(seed), "steps": str(steps)}
        cpu, begin = self._cpu(), time.time()
        answer = self._client.post("/v1/videos", data=data, files=files)
        job = self._ended(answer.raise_for_status().json()["id"])
        spent = self._cpu() - cpu
        at = {name: job.number(f"{name}_ms") / 1000 for name in ("created", "started", "finished")}
        stages = {
            name.removesuffix("_s"): value for name, value in job.result["timings"].items()
        }
        self.around.append({
            "post": at["created"] - begin,
            "wait": at["started"] - at["created"],
            "else": at["finished"] - at["started"] - sum(stages.values()),
        })  # fmt: skip
        return Turn(at["finished"] - begin, spent, stages, job.result["frames_sha256"])

    def close(self) -> None:
        """Give the connection back."""
        self._client.close()

    def _ended(self, video: str) -> Job:
        """The record; looked at seldom, for looking takes the processor's time."""

        def look() -> Job | None:
            time.sleep(0.25)
            job = self._place.ledger.read(ref_of("local", video))
            return job if job.ended else None

        job: Job = self._place.wait(look, limit_s=900)
        if job.state != "completed":
            raise RuntimeError(f"failed: {job.text('error_message')}")
        return job

    def _cpu(self) -> float:
        """Seconds of all processes of the service, and of their children that have ended."""
        found = 0.0
        for name in NAMES:
            parent = psutil.Process(self._place.pid(name))
            for one in (parent, *parent.children(recursive=True)):
                times = one.cpu_times()
                found += times.user + times.system + times.children_user + times.children_system
        return found


def picture() -> bytes:
    """The request's, as PNG."""
    out = io.BytesIO()
    Image.frombytes("RGB", (64, 64), PIXELS).save(out, "PNG")
    return out.getvalue()


def store(bare: Bare, model: Path, spec: Spec) -> dict[str, float]:
    """Seconds of what a worker does with a finished video, each made alone, the second time."""
    video, judge = bare.video, load_judge(model)
    assert video is not None
    made: Video = video
    with tempfile.TemporaryDirectory(prefix="tb") as name:
        folder = Path(name)
        seal, blobs = Provenance.load(None, folder / "signing"), FolderBlobs(folder / "blobs")
        origin = Origin("video_0", bare.engine.digest, spec.prompt, ("0",))
        sheet = picture_bytes(made.contact_sheet(bare.references), "PNG")
        parts: dict[str, Callable[[], object]] = {
            "mark, mp4 and signature": lambda: seal.seal(made, origin),
            "of these, mp4": lambda: made.mp4(made.view_scale()),
            "thumbnail": made.thumbnail,
            "sheet": lambda: picture_bytes(made.contact_sheet(bare.references), "PNG"),
            "files": lambda: [blobs.put(f"t/{n}", sheet, ".png") for n in range(3)],
        }
        if judge is not None:
            found = judge
            parts["judge"] = lambda: found.score(made.frames, bare.references)
        return {name: min(seconds(part) for _ in range(3)) for name, part in parts.items()}


def steps_of(seconds: float, bare: Bare) -> int:
    """Of a job that takes about so long here."""
    few, more = (min(bare.turn(0, steps).clock_s for _ in range(2)) for steps in (4, 12))
    each = max((more - few) / 8, 1e-3)
    return max(1, min(bare.engine.preset.limits.max_steps, 4 + round((seconds - few) / each)))


def run(model: Path, rounds: int, steps: int) -> dict[str, Any]:
    """The whole experiment; returns what it found. steps: of the job; 0: `JOB_S` seconds' worth."""
    bare = Bare(model)
    with stage(
        gateways=1, workers=1, worker="workers.app", model_dir=model.resolve(), lease_s=15
    ) as place:  # fmt: skip
        place.start_all()
        served = Served(place)
        for one in (bare, served):
            one.turn(0, 2)  # what is slow the first time is not measured
        steps = steps or steps_of(JOB_S, bare)
        served.around.clear()
        turns = [
            (bare.turn(seed, steps), served.turn(seed, steps)) for seed in range(1, rounds + 1)
        ]
        served.close()
    found = compared(turns, served.around)
    found["store"] = store(bare, model, bare.spec(0, steps))
    return {"rounds": rounds, "steps": steps, **found}


def compared(
    turns: Sequence[tuple[Turn, Turn]], around: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Bare and served turns, pair by pair."""
    names = dict.fromkeys(name for pair in turns for turn in pair for name in turn.stages)
    stages = {
        name: {
            way: statistics.median(pair[place].stages.get(name, 0.0) for pair in turns)
            for place, way in enumerate(("bare", "service"))
        }
        for name in names
    }
    beside = [
        sum(one.values()) + sum(served.stages.get(name, 0.0) for name in ("fetch", "store"))
        for one, (_, served) in zip(around, turns, strict=True)
    ]
    alone = spread([bare.clock_s for bare, _ in turns])
    added = 1 + statistics.median(beside) / alone["median"]
    return {
        "added": added,
        "added_s": spread(beside),
        "bare_s": alone,
        "service_s": spread([served.clock_s for _, served in turns]),
        "ratio": spread([served.clock_s / bare.clock_s for bare, served in turns]),
        "cpu": spread([served.cpu_s / bare.cpu_s for bare, served in turns]),
        "overhead_ms": spread([1000 * (s.clock_s - b.clock_s) for b, s in turns]),
        "stages": stages,
        "around": {
            name: statistics.median(one[name] for one in around) for name in around[0]
        },
        "equal": all(bare.frames == served.frames for bare, served in turns),
        "met": added <= AIM,
    }


def main(given: Sequence[str] | None = None) -> int:
    """Entry point; the exit status is 1 where the frames are not equal."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=0, help="0: a job of some 15 s here")
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args(given)
    found = run(asked.model, asked.rounds, asked.steps)
    print(json.dumps(found))
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
