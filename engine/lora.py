"""LoRA files of any of the usual spellings, merged into a transformer's weights.

    peft             base_model.model.blocks.0.self_attn.q.lora_A.weight
    ComfyUI          diffusion_model.blocks.0.self_attn.q.lora_A.weight (or lora_down, .alpha)
    diffusers        transformer.blocks.0.attn1.to_q.lora_A.weight (or lora.down)
    kohya, musubi    lora_unet_blocks_0_self_attn_q.lora_down.weight, .alpha (diffusers' names too)
    DiffSynth        pipe.dit.blocks.0.self_attn.q.lora_A.default.weight
    lightx2v         as ComfyUI, and diff, diff_b: what is added to a weight or a bias as it is

The weight becomes W + strength * (alpha / rank) * B A (arXiv 2106.09685, section 4.1). alpha stands
in the file as a tensor, in its header (`training.lora`: rank, scale), in adapter_config.json beside
it (peft), or nowhere: then it is the rank. Every tensor of the file must find its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import CheckpointError
from engine.upstream import PREFIX, diffusers_name

_PREFIXES = ("base_model.model.", PREFIX, "diffusion_model.", "transformer.", "pipe.dit.")
_UNDERSCORED = ("lora_unet_", "lycoris_")
_UNSUPPORTED = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
_OTHER_KINDS = (".diff_m", ".dora_scale", ".lokr_w1", ".lokr_w2", ".hada_w1_a")
_PART = re.compile(
    r"(?P<target>.+)\.(?:(?P<down>lora_A(?:\.\w+)?\.weight|lora[_.]down\.weight)"
    r"|(?P<up>lora_B(?:\.\w+)?\.weight|lora[_.]up\.weight)|(?P<alpha>alpha)"
    r"|(?P<diff>diff)|(?P<diff_b>diff_b))"
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


@dataclass(frozen=True)
class Difference:
    """The update of one weight or bias, as it is."""

    value: Tensor

    def delta(self) -> Tensor:
        """In the weight's shape, fp32."""
        return self.value.float()


Change = Adapter | Difference


def adapters(
    tensors: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    label: str = "the LoRA",
    alpha: float | None = None,
) -> dict[str, Change]:
    """The changes of a LoRA file, by the name of the weight that each changes.

    Args:
        weights: of the transformer, under our names.
        alpha: of every adapter that has none of its own, see `declared_alpha`; None is the rank.

    Raises:
        CheckpointError: a tensor belongs to no weight, lacks its partner, or is of another width;
            the message names it.
    """
    parts = _parts(tensors, weights, label)
    found: dict[str, Change] = {}
    for name, own in sorted(parts.items()):
        if own.keys() <= {"diff", "diff_b"}:
            (value,) = own.values()
            if value.shape != weights[name].shape:
                sizes = f"{tuple(weights[name].shape)}, not {tuple(value.shape)}"
                raise CheckpointError(f"{label} is for another width: {name} is {sizes}")
            found[name] = Difference(value)
            continue
        if "diff" in own:
            raise CheckpointError(f"{label}: {name} is adapted twice")
        if "down" not in own or "up" not in own:
            raise CheckpointError(f"{label}: only one half of the adapter of {name} is there")
        down, up = own["down"], own["up"]
        wanted = tuple(weights[name].shape)
        got = (up.shape[0], down.shape[-1]) if down.ndim == up.ndim == 2 else ()
        if got != wanted or up.shape[1] != down.shape[0] or not len(down):
            sizes = f"{tuple(up.shape)} x {tuple(down.shape)}"
            raise CheckpointError(f"{label} is for another width: {name} is {wanted}, not {sizes}")
        if "alpha" in own and own["alpha"].numel() != 1:
            raise CheckpointError(f"{label}: the alpha of {name} must be one number")
        assumed = float(len(down)) if alpha is None else alpha
        found[name] = Adapter(down, up, float(own["alpha"]) if "alpha" in own else assumed)
    if not found:
        raise CheckpointError(f"{label} holds no adapters")
    return found


def declared_alpha(path: Path) -> float | None:
    """What a LoRA's header or its adapter_config.json says of alpha, for all of its adapters.

    Raises:
        CheckpointError: the configuration scales in a way that is not supported.
    """
    path = Path(path)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {path}: {error}") from error
        if {"rank", "scale"} <= header.keys():
            return float(header["rank"]) * float(header["scale"])
    config = (path if path.is_dir() else path.parent) / "adapter_config.json"
    if not config.is_file():
        return None
    try:
        said = json.loads(config.read_bytes())
        odd = [key for key in _UNSUPPORTED if said.get(key)]
        alpha = float(said["lora_alpha"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{config} is not the configuration of a LoRA") from error
    if odd:
        raise CheckpointError(f"{config}: {odd[0]} is not supported")
    return alpha


def merge(
    weights: Mapping[str, Tensor],
    found: Mapping[str, Change],
    strength: float = 1.0,
    label: str = "the LoRA",
) -> dict[str, Tensor]:
    """The weights with the adapters in them; each keeps its precision.

    Raises:
        CheckpointError: a weight would be too large for its precision.
    """
    merged = dict(weights)
    for name, adapter in found.items():
        own = weights[name]
        merged[name] = (own.float() + strength * adapter.delta()).to(own.dtype)
        if not bool(merged[name].float().isfinite().all()):
            raise CheckpointError(f"{label} at strength {strength:g} makes {name} infinite")
    return merged


def _parts(
    tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor], label: str
) -> dict[str, dict[str, Tensor]]:
    """Weight name -> its down, up and alpha, or its difference."""
    matrices = _places(weights, ".weight", lambda weight: weight.ndim == 2)
    places = {"diff": _places(weights, ".weight"), "diff_b": _places(weights, ".bias")}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        match = _PART.fullmatch(key)
        kind = str(match.lastgroup) if match else ""
        name = places.get(kind, matrices).get(_plain(match["target"])) if match else None
        if match is None and key.endswith(_OTHER_KINDS):
            raise CheckpointError(f"{label}: {key} is a kind of change that is not supported")
        if match is None or name is None:
            raise CheckpointError(f"{label}: {key} belongs to no weight of this transformer")
        if not bool(value.float().isfinite().all()):
            raise CheckpointError(f"{label}: {key} holds numbers that are not finite")
        if kind in parts.setdefault(name, {}):
            raise CheckpointError(f"{label}: {name} is adapted twice")
        parts[name][kind] = value
    return parts


def _plain(target: str) -> str:
    for prefix in _PREFIXES:
        target = target.removeprefix(prefix)
    return target


def _places(
    weights: Mapping[str, Tensor],
    ending: str,
    wanted: Callable[[Tensor], bool] = lambda weight: True,
) -> dict[str, str]:
    """How the weights with this ending are called in each of the spellings -> our name."""
    places = {}
    for name, value in weights.items():
        if wanted(value) and name.endswith(ending):
            for path in (name.removesuffix(ending), diffusers_name(name).removesuffix(ending)):
                places[path] = name
                places |= {start + path.replace(".", "_"): name for start in _UNDERSCORED}
    return places
