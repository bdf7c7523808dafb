"""Low-rank adapters through peft: add them, save them apart, melt them in.

peft wraps the linear maps in place and keeps the model's class, so the loop, the sampler and the
sheets see the same WanDiT. On disk an adapter is a safetensors file of its A and B matrices.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from training.state import write_safetensors

ADAPTER = "default"
# Attention and MLP maps of the video blocks and of the identity stream.
TARGETS = r".*blocks\.\d+\.((self_attn|cross_attn|intra|inter)\.[qkvo]|k|v|ffn\.[02])"


def add(model: nn.Module, rank: int, alpha: float | None = None, targets: str = TARGETS) -> None:
    """Adapters of `rank` on the target maps; everything else is frozen. Starts as the identity."""
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=int(alpha or rank), target_modules=targets)
    inject_adapter_in_model(config, model, ADAPTER)


def adapters(model: nn.Module) -> dict[str, Tensor]:
    """The A and B matrices by name."""
    return {name: p.detach() for name, p in model.named_parameters() if ".lora_" in name}


def save(model: nn.Module, path: Path) -> None:
    """Adapters to a safetensors file that says their rank and scale."""
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    assert layers, "the model has no adapters"
    rank, scale = layers[0].r[ADAPTER], layers[0].scaling[ADAPTER]
    write_safetensors(path, adapters(model), {"rank": str(rank), "scale": str(scale)})


@torch.no_grad()
def load(model: nn.Module, path: Path) -> None:
    """Into a model that has adapters of the same rank.

    Raises:
        ValueError: the file holds other adapters than the model.
    """
    live, saved = adapters(model), load_file(path)
    odd = [n for n in live.keys() | saved.keys() if _shape(live, n) != _shape(saved, n)]
    if odd:
        raise ValueError(f"{path} does not fit the model's adapters: {sorted(odd)[:3]}")
    for name, tensor in live.items():
        tensor.copy_(saved[name])


def _shape(tensors: dict[str, Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


def merged(model: nn.Module) -> nn.Module:
    """A copy with the adapters melted into plain linear maps, under the plain names."""
    whole = copy.deepcopy(model)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            assert isinstance(module, nn.Module)
            module.merge(adapter_names=[ADAPTER])
            parent = whole.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    return whole
