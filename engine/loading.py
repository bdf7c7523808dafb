"""From a verified model folder to models on their devices, after a look at what is free.

Where each model lies, by `Runtime.offload`:

                 transformer                       VAE      text encoder, VLM
    none         device                            device   device
    encoders     device                            device   CPU; on the device for each forward
    group        blocks on the CPU, each on the    device   CPU; on the device for each forward
                 device for its turn; rest: device
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.distributed as td
from torch import Tensor

from engine import offload
from engine.checkpoint import check_names
from engine.dit import WanDiT
from engine.encodings import Encoders
from engine.errors import BackendError, CheckpointError
from engine.memory import Footprint, Table, footprint, free_bytes, work_here
from engine.placement import Placement
from engine.plan import work_of
from engine.presets import Preset
from engine.quantize import quantizer
from engine.runtime import Runtime
from engine.text import TextEncoder
from engine.vace import build_dit
from engine.vae import VAE
from engine.vlm import VLM
from engine.weights import CPU, fill, shapes, without_contents

# Single changes of a runtime that may save memory, the ones that cost least first.
REMEDIES = (
    ("tile", "4096"),
    ("offload", "none"),
    ("offload", "encoders"),
    ("offload", "group"),
    ("weights", "int8"),
)


def load_models(
    folder: Path, preset: Preset, runtime: Runtime, place: Placement
) -> tuple[WanDiT, Encoders]:
    """The models of a verified folder, each where it belongs.

    Raises:
        CheckpointError: a file does not fit the preset, or holds no finite numbers.
        BackendError: there is too little memory, or torchao is wanted and absent.
    """
    check_memory(folder, preset, runtime, place)
    dit = _load_dit(folder / "dit.safetensors", preset, runtime, place)
    return dit, _load_encoders(folder, preset, runtime, place)


def load_encoders(folder: Path, preset: Preset, runtime: Runtime, place: Placement) -> Encoders:
    """The same without the DiT."""
    check_memory(folder, preset, runtime, place)
    return _load_encoders(folder, preset, runtime, place)


def _load_encoders(folder: Path, preset: Preset, runtime: Runtime, place: Placement) -> Encoders:
    path = folder / "vae.safetensors"
    vae = VAE.from_files(path, preset.vae, runtime.max_cells, place.device)
    if runtime.encoders == "remote":
        return Encoders(None, vae, None)
    away = runtime.offload != "none"
    home = CPU if away else place.device
    words = folder / "text_tokenizer.json"
    text = TextEncoder.from_files(
        folder / "text.safetensors", words, preset.text, home, place.dtype
    )
    vlm = None
    if preset.dit.use_vlm:
        words = folder / "vlm_tokenizer.json"
        vlm = VLM.from_files(folder / "vlm.safetensors", words, preset.vlm, home, place.dtype)
    if away:
        offload.visit(text.model, place.device)
        if vlm is not None:
            offload.visit(vlm.model.model, place.device)
    return Encoders(text, vae, vlm)


def _load_dit(path: Path, preset: Preset, runtime: Runtime, place: Placement) -> WanDiT:
    shrink = (lambda name, x: x) if runtime.weights == "full" else quantizer(runtime.weights)

    def keep(name: str, weight: Tensor) -> Tensor:
        weight = shrink(name, weight)
        if runtime.offload != "group" or not offload.is_away(name) or place.device == CPU:
            return weight
        # Pinned, or diffusers would make a second copy of them all.
        return weight.cpu() if runtime.weights != "full" else weight.cpu().pin_memory()

    with without_contents():
        dit = build_dit(preset.dit)
    try:
        check_names(dict(dit.named_parameters()), shapes(path), path.name)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: not the weights of preset {preset.name}; `troupe convert` makes new folders"
        ) from error
    fill(dit, path, place.device, place.dtypes(dit), keep)
    return dit


def check_memory(
    folder: Path, preset: Preset, runtime: Runtime, place: Placement, largest: bool = False
) -> None:
    """Raises BackendError if weights and work will not fit into what is free.

    The work is that of the preset's default video with as many subjects as it takes, as
    `troupe plan` counts it. That takes seconds, so it is done only where the weights alone are
    more than an eighth of what is free. A larger video may still not fit: with `largest` it is that
    of the largest that the preset's limits allow, always counted.
    """
    if largest:
        limits = preset.limits
        side, frames = limits.max_side, limits.max_frames
        usual = replace(preset.defaults, width=side, height=side, num_frames=frames)
        preset = replace(preset, defaults=usual)
    names = ("dit", "text", "vae", *(["vlm"] if preset.dit.use_vlm else []))
    tables = {name: shapes(folder / f"{name}.safetensors") for name in names}
    found = _footprint(tables, runtime, place)
    free = {device: free_bytes(device) for device in (place.device, CPU)}
    weights = found.resident + max(found.visiting.values(), default=0)
    need = {place.device: weights}
    if place.device != CPU:
        need[CPU] = found.away
    works = cache(lambda tile: work_here(work_of(preset, tile), runtime, place.dtype.itemsize))
    if largest or weights > free[place.device] / 8:
        need[place.device] = found.peak(works(runtime.tile))
    for device in need:
        if need[device] > free[device]:
            ways = _ways(tables, runtime, place, works, need, free, device)
            raise BackendError(
                f"{preset.name} needs {need[device] / 1e9:.2f} GB on {device},"
                f" {free[device] / 1e9:.2f} GB are free;"
                f" try {' or '.join(ways) or 'a larger card or machine'}"
            )


def _footprint(tables: Mapping[str, Table], runtime: Runtime, place: Placement) -> Footprint:
    # Whatever visits the CPU lies there already.
    known = replace(runtime, offload="none") if place.device == CPU else runtime
    return footprint(tables, known, place.dtype.itemsize)


def _ways(
    tables: Mapping[str, Table],
    runtime: Runtime,
    place: Placement,
    works: Callable[[str], list[tuple[str, int]]],
    need: Mapping[torch.device, int],
    free: Mapping[torch.device, int],
    short: torch.device,
) -> list[str]:
    """Single changes of the runtime that can be had, take less where memory is short, and do not
    make it short elsewhere."""
    ways = []
    for name, value in REMEDIES:
        if (name, value) == ("offload", "group") and td.is_available() and td.is_initialized():
            continue  # the blocks of a team stay
        try:
            changed = replace(runtime, **{name: value})
        except BackendError:
            continue
        found = _footprint(tables, changed, place)
        then = {CPU: found.away} | {place.device: found.peak(works(changed.tile))}
        fits = all(then[other] <= max(free[other], need[other]) for other in need if other != short)
        if then[short] < need[short] and fits:
            ways.append(f"{name}={value}")
    return ways
