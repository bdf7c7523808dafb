"""How many bytes of weights lie where, from shapes alone, and how much work needs beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from engine.offload import is_away
from engine.placement import EXACT
from engine.quantize import is_large
from engine.runtime import Runtime

CGROUP = Path("/sys/fs/cgroup")
Table = Mapping[str, Tensor]  # parameter name -> a tensor of its shape


@dataclass(frozen=True)
class Footprint:
    """Bytes of weights. resident: always on the device. visiting: on the device while they work,
    by model ("text", "vlm", "dit": two blocks at a time). away: on the CPU meanwhile."""

    resident: int
    visiting: Mapping[str, int]
    away: int

    def peak(self, stages: Iterable[tuple[str, int]]) -> int:
        """On the device at once. stages: the model at work and the bytes of its work, of each."""
        return self.resident + max(self.visiting.get(model, 0) + work for model, work in stages)


def loads(runtime: Runtime, model: str) -> bool:
    """Whether "dit", "text", "vae" or "vlm" is loaded under this runtime."""
    if runtime.encoders == "only":
        return model != "dit"
    return runtime.encoders == "local" or model in ("dit", "vae")


def work_here(
    stages: Sequence[tuple[str, int]], runtime: Runtime, itemsize: int
) -> list[tuple[str, int]]:
    """Those of a request's stages (model, bytes; the last is the decoding) that are done under this
    runtime, as `footprint` has its precision.

    They are counted in bf16, and fp32 takes at most twice that; the VAE's in its fp32 already.
    """
    times = itemsize // torch.bfloat16.itemsize
    done = stages[:-1] if runtime.encoders == "only" else stages
    here = [(model, size) for model, size in done if loads(runtime, model)]
    return [(model, size if model == "vae" else size * times) for model, size in here]


def footprint(tables: Mapping[str, Table], runtime: Runtime, itemsize: int) -> Footprint:
    """Where the weights of a preset's models lie.

    Args:
        tables: "dit", "text", "vae" and, where there is one, "vlm"; only what the runtime loads
            counts.
        itemsize: bytes of a number in the runtime's precision.
    """
    tables = {name: table for name, table in tables.items() if loads(runtime, name)}
    sizes = {name: _bytes(table, itemsize) for name, table in tables.items() if name != "dit"}
    sizes["vae"] = _bytes(tables["vae"], 4)
    dits = tables.get("dit", {})
    parts = {name: _dit_bytes(name, x, runtime, itemsize) for name, x in dits.items()}
    visiting = {}
    if runtime.offload != "none":
        visiting = {name: size for name, size in sizes.items() if name != "vae"}
    away = sum(visiting.values())
    dit = sum(parts.values())
    if runtime.offload == "group":
        gone = {name: size for name, size in parts.items() if is_away(name)}
        one = sum(size for name, size in gone.items() if name.startswith("blocks.0."))
        dit, away, visiting["dit"] = dit - sum(gone.values()), away + sum(gone.values()), 2 * one
    stays = sum(size for name, size in sizes.items() if name not in visiting)
    return Footprint(dit + stays, visiting, away)


def _bytes(table: Table, itemsize: int) -> int:
    return sum(x.numel() for x in table.values()) * itemsize


def _dit_bytes(name: str, weight: Tensor, runtime: Runtime, itemsize: int) -> int:
    if name.split(".")[0] in EXACT:
        return 4 * weight.numel()
    if runtime.weights != "full" and is_large(name, weight):
        return weight.numel() + 4 * len(weight)
    return itemsize * weight.numel()


def free_bytes(device: torch.device) -> int:
    """Of memory that a process may still take there."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    available = int(psutil.virtual_memory().available)
    return min(available, _left_to_container(available))


def _left_to_container(otherwise: int) -> int:
    """What this process's control group may still take (cgroup v2, "Memory Interface Files" in the
    kernel's admin guide), or `otherwise` where it has no limit.

    Pages of files count as free, as they do in psutil's figure: they go when somebody needs room,
    and a model folder has just been read whole.
    """
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        lines = (CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return otherwise
    if limit == "max":
        return otherwise
    pages = dict(line.split() for line in lines)
    used -= int(pages["active_file"]) + int(pages["inactive_file"])
    return max(0, int(limit) - used)
