"""LoRA files of any of the usual spellings, merged into a transformer's weights.

    peft             base_model.model.blocks.0.self_attn.q.lora_A.weight
    ComfyUI          diffusion_model.blocks.0.self_attn.q.lora_A.weight (or lora_down, .alpha)
    diffusers        transformer.blocks.0.attn1.to_q.lora_A.weight
    kohya, musubi    lora_unet_blocks_0_self_attn_q.lora_down.weight, .alpha

The weight becomes W + strength * (alpha / rank) * B A (arXiv 2106.09685, section 4.1); a file
without an alpha means alpha = rank. Every tensor of the file must find its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.upstream import diffusers_name

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.")
_KOHYA = "lora_unet_"
_PART = re.compile(
    r"(?P<target>.+)\.(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora_down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora_up\.weight)|(?P<alpha>alpha))"
)


@dataclass(frozen=True)
class Adapter:
    """The update of one weight: down [rank, in], up [out, rank]."""

    down: Tensor
    up: Tensor
    alpha: float

    def delta(self) -> Tensor:
        """[out, in], fp32."""
        return (self.alpha / len(self.down)) * (self.up.float() @ self.down.float())


def adapters(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], label: str = "the LoRA"
) -> dict[str, Adapter]:
    """The adapters of a LoRA file, by the name of the weight that each changes.

    Args:
        weights: of the transformer, under our names.

    Raises:
        CheckpointError: a tensor belongs to no weight, lacks its partner, or is of another width;
            the message names it.
    """
    parts = _parts(tensors, weights, label)
    found = {}
    for name, own in sorted(parts.items()):
        if "down" not in own or "up" not in own:
            raise CheckpointError(f"{label}: only one half of the adapter of {name} is there")
        down, up = own["down"], own["up"]
        wanted = tuple(weights[name].shape)
        got = (up.shape[0], down.shape[-1]) if down.ndim == up.ndim == 2 else ()
        if got != wanted or up.shape[1] != down.shape[0]:
            sizes = f"{tuple(up.shape)} x {tuple(down.shape)}"
            raise CheckpointError(f"{label} is for another width: {name} is {wanted}, not {sizes}")
        alpha = float(own["alpha"]) if "alpha" in own else float(len(down))
        found[name] = Adapter(down, up, alpha)
    if not found:
        raise CheckpointError(f"{label} holds no adapters")
    return found


def merge(
    weights: Mapping[str, Tensor], found: Mapping[str, Adapter], strength: float = 1.0
) -> dict[str, Tensor]:
    """The weights with the adapters in them; each keeps its precision."""
    merged = dict(weights)
    for name, adapter in found.items():
        own = weights[name]
        merged[name] = (own.float() + strength * adapter.delta()).to(own.dtype)
    return merged


def _parts(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], label: str
) -> dict[str, dict[str, Tensor]]:
    """Weight name -> its down, up and alpha."""
    places = _places(weights)
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _PART.fullmatch(key)
        name = places.get(_plain(match["target"])) if match else None
        if match is None or name is None:
            raise CheckpointError(f"{label}: {key} belongs to no weight of this transformer")
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{label}: {key} holds numbers that are not finite")
        kind = str(match.lastgroup)
        if kind in parts.setdefault(name, {}):
            raise CheckpointError(f"{label}: {name} is adapted twice")
        parts[name][kind] = value
    return parts


def _plain(target: str) -> str:
    for prefix in _PREFIXES:
        target = target.removeprefix(prefix)
    return target


def _places(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """How the matrices are called in each of the spellings -> our name."""
    places = {}
    for name, value in weights.items():
        if value.ndim == 2 and name.endswith(".weight"):
            path = name.removesuffix(".weight")
            places[path] = places[_KOHYA + path.replace(".", "_")] = name
            places[diffusers_name(name).removesuffix(".weight")] = name
    return places
