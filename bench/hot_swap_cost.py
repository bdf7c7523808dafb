"""What an exchange of weights costs an engine, for `bench.hot_swap`: time, and memory.

    pause   seconds that `engine.swap.take` holds the shipped miniature, and the small request that
            follows the first time, in steps of the denoising of a video of the usual size
    ready   milliseconds from one adapter that lies ready to another, and back to the base
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
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench import tiny
from engine import golden, swap
from engine.adapters import LORA, merge
from engine.folders import DIT, Manifest, read_manifest, save_folder
from engine.pipeline import Engine, Progress
from engine.resident import Resident
from engine.spec import Spec
from training import lora

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


def ready(folder: Path, times: int, rank: int = 8) -> dict[str, float]:
    """Of two adapters of this rank on every linear map that `training.lora` adapts."""
    engine = Engine.load(folder)
    with TemporaryDirectory(prefix="troupe-ready-") as place, ExitStack() as stack:
        base = stack.enter_context(swap.checked(engine, folder))
        resident, digests = Resident(base), [engine.digest]
        for seed in (1, 2):
            whole = _merged(folder, Path(place) / str(seed), rank, seed)
            held = stack.enter_context(swap.checked(engine, whole))
            resident.add(engine, held)
            digests.append(held.manifest.digest())
        took = []
        for turn in range(times):
            began = time.monotonic()
            resident.take(engine, digests[(turn + 1) % 3])
            took.append(1000 * (time.monotonic() - began))
        most = resident.num_bytes
    return {
        "adapter_ms": round(sorted(took)[times // 2], 2),
        "adapter_most_ms": round(max(took), 2),
        "adapters_mb": round(most / 1e6, 1),
    }


def _merged(base: Path, place: Path, rank: int, seed: int) -> Path:
    """The folder that a random adapter makes."""
    dit = Engine.load(base).dit
    torch.manual_seed(seed)
    lora.add(dit, rank)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    place.mkdir()
    lora.save(dit, place / "lora.safetensors")
    about = Manifest("miniature", lineage={"base": read_manifest(base).digest()})
    save_folder(place / "adapter", about, {LORA: place / "lora.safetensors"})
    merge(base, place / "adapter", place / "whole")
    return place / "whole"


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
