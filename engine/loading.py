"""From a verified model folder to models on their devices, after a look at what is free.

Where each model lies, by `Runtime.offload`:

                 transformer                       VAE      text encoder, VLM
    none         device                            device   device
    encoders     device                            device   CPU; on the device for each forward
    group        blocks on the CPU, each on the    device   CPU; on the device for each forward
                 device for its turn; rest: device
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engine import offload
from engine.checkpoint import check_names
from engine.dit import WanDiT
from engine.encodings import Encoders
from engine.errors import BackendError, CheckpointError
from engine.memory import footprint, free_bytes
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
    path = folder / "vae.safetensors"
    vae = VAE.from_files(path, preset.vae, runtime.max_cells, place.device)
    return dit, Encoders(text, vae, vlm)


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


def check_memory(folder: Path, preset: Preset, runtime: Runtime, place: Placement) -> None:
    """Raises BackendError if weights and work will not fit into what is free.

    The work is that of the preset's default video with as many subjects as it takes, as
    `troupe plan` counts it. That takes seconds, so it is done only where the weights alone are
    more than an eighth of what is free.
    """
    names = ("dit", "text", "vae", *(["vlm"] if preset.dit.use_vlm else []))
    tables = {name: shapes(folder / f"{name}.safetensors") for name in names}
    itemsize = place.dtype.itemsize
    found = footprint(tables, runtime, itemsize)
    free = free_bytes(place.device)
    weights = found.resident + max(found.visiting.values(), default=0)
    if weights > free / 8:
        # Counted in bf16; what computes in fp32 takes at most twice that.
        more = {"vae": 1}
        work = work_of(preset, runtime.tile)
        work = [(model, size * more.get(model, itemsize // 2)) for model, size in work]
        _compare(found.peak(work), free, place.device, preset, runtime)
    if found.away and place.device != CPU:
        _compare(found.away, free_bytes(CPU), CPU, preset, runtime)


def _compare(
    need: int, free: int, device: torch.device, preset: Preset, runtime: Runtime
) -> None:
    if need <= free:
        return
    ways = ["weights=int8"] if runtime.weights == "full" else []
    if runtime.offload != "group" and device != CPU:
        ways = ["offload=group", *ways]
    raise BackendError(
        f"{preset.name} needs {need / 1e9:.2f} GB on {device}, {free / 1e9:.2f} GB are free;"
        f" try {' or '.join([*ways, 'a smaller preset'])}"
    )
