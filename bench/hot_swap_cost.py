"""What an exchange of weights costs an engine, for `bench.hot_swap`: time, and memory.

    pause   seconds that `engine.swap.take` holds the shipped miniature, and the small request that
            follows the first time, in steps of the denoising of a video of the usual size
    rss     the most memory while a model is verified, looked at and taken over, of a process of its
            own, as a ratio to its weights and one file of them

The interpreter, its libraries and what a request needs are in both terms of no ratio: counted is
what comes on top of a process that serves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import tiny
from engine import golden, swap
from engine.folders import DIT
from engine.pipeline import Engine, Progress
from engine.spec import Spec

SHIPPED = Path("models/miniature")


def pause(folder: Path, times: int, steps: int) -> dict[str, float]:
    """Of a model folder, in place of itself.

    Args:
        times: exchanges. steps: of the denoising, one request for each exchange.
    """
    engine = Engine.load(folder)
    spec = Spec.of(engine.preset, "a red ball", steps=steps + 1)
    takes, tries, each = [], [], []
    for _ in range(times):
        each += _steps(engine, spec)
        with swap.checked(engine, folder) as found:
            began = time.monotonic()
            swap.take(engine, found)
            takes.append(time.monotonic() - began)
        began = time.monotonic()
        golden.check(engine, {})
        tries.append(time.monotonic() - began)
    step_s = sorted(each)[len(each) // 2]
    return {
        "step_s": round(step_s, 3),
        "step_least_s": round(min(each), 3),
        "step_most_s": round(max(each), 3),
        "exchange_s": round(sorted(takes)[len(takes) // 2], 3),
        "exchange_most_s": round(max(takes), 3),
        "pause_steps": round(max(takes) / step_s, 2),
        "tried_steps": round(sorted(tries)[len(tries) // 2] / step_s, 2),
    }


def _steps(engine: Engine, spec: Spec) -> list[float]:
    """Seconds of each step but the first, which brings what others use."""
    ends: list[float] = []

    def hear(progress: Progress) -> None:
        if progress.stage == "denoise":
            ends.append(time.monotonic())

    engine.generate(spec, (), hear)
    return [then - before for before, then in zip(ends[1:], ends[2:], strict=False)]


def rss(dim: int, layers: int) -> dict[str, float]:
    """In a process of its own, a transformer of this width and depth."""
    argv = [sys.executable, "-m", "bench.hot_swap_cost", str(dim), str(layers)]
    told = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def measured(dim: int, layers: int) -> dict[str, float]:
    """What `rss` is told, of this process."""
    wide = {"dim": dim, "num_heads": dim // 64, "ffn_dim": 4 * dim, "num_layers": layers}
    with TemporaryDirectory(prefix="troupe-rss-") as place:
        one = tiny.base(Path(place) / "one", wide)
        other = tiny.variant(one, Path(place) / "other", 1)
        engine = Engine.load(one)
        golden.picture(engine)
        weights = sum(p.numel() * p.element_size() for p in engine.dit.parameters())
        shard = (other / DIT).stat().st_size
        before = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, proc(5)
        with swap.checked(engine, other) as found:
            swap.take(engine, found)
        peak = _memory("VmHWM")
    return {
        "weights_mb": round(weights / 1e6, 1),
        "shard_mb": round(shard / 1e6, 1),
        "before_mb": round(before / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
        "rss_ratio": round((weights + peak - before) / (weights + shard), 3),
    }


def _memory(name: str) -> int:
    """Bytes, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024 * int(line.split()[1])
    raise ValueError(f"no {name} is told here")


def main(arguments: Sequence[str]) -> int:
    """The process of `rss`: width and depth."""
    dim, layers = (int(word) for word in arguments)
    found: dict[str, Any] = measured(dim, layers)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
