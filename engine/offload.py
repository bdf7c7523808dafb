"""Weights that live in the CPU's memory and go to the card when they are needed.

    visit      a whole model, or a layer: there for each forward, let go afterwards. Nothing is
               copied back, for what lies on the CPU stays there.
    grouped    a DiT's blocks one by one, the next one on its way while one computes: diffusers'
               group offloading (diffusers 0.42 `hooks/group_offloading.py`)

With the CPU as the device both compute the same as without, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from engine.dit import Condition, WanDiT
from engine.sample import Velocity
from engine.weights import CPU

# Parts of a DiT that live elsewhere under `grouped`.
AWAY = ("blocks", "vace_blocks", "subject_blocks")
Held = list[tuple[nn.Module, str, nn.Parameter | None, Tensor | None]]


def visit(module: nn.Module, device: torch.device) -> None:
    """From now on `module` computes on `device`; what goes in may lie anywhere, what comes out
    lies where the input did.

    Works on calls of the module, not of its methods.
    """
    stack: list[tuple[Held, torch.device]] = []

    def enter(_: nn.Module, args: Any, kwargs: Any) -> Any:
        found = next(_tensors((args, kwargs)), None)
        home = device if found is None else found.device
        stack.append((_lend(module, device), home))
        return tree_map_only(Tensor, lambda x: x.to(device), (args, kwargs))

    def leave(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        held, home = stack.pop()
        for owner, name, parameter, buffer in held:
            if parameter is not None:
                owner._parameters[name] = parameter
            else:
                owner._buffers[name] = buffer
        return tree_map_only(Tensor, lambda x: x.to(home), output)

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave, with_kwargs=True, always_call=True)


def _tensors(values: Any) -> Iterator[Tensor]:
    return (x for x in torch.utils._pytree.tree_leaves(values) if isinstance(x, Tensor))


def _lend(module: nn.Module, device: torch.device) -> Held:
    """Puts copies on the device in place of the weights; returns what was there."""
    held: Held = []
    copies: dict[int, nn.Parameter] = {}  # a tied weight goes once
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.device != device:
                held.append((owner, name, parameter, None))
                if id(parameter) not in copies:
                    copies[id(parameter)] = nn.Parameter(parameter.to(device), False)
                owner._parameters[name] = copies[id(parameter)]
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.device != device:
                held.append((owner, name, None, buffer))
                owner._buffers[name] = buffer.to(device)
    return held


def is_away(name: str) -> bool:
    """Whether a DiT's parameter lives on the CPU under `grouped`."""
    return name.split(".")[0] in AWAY


class _Steps(nn.Module):
    """A step of a DiT as the call of a module, around which diffusers lays its hooks.

    The blocks are its children, and nothing else of the DiT: the rest stays on the device.
    """

    def __init__(self, dit: WanDiT, device: torch.device) -> None:
        super().__init__()
        self.denoise = dit.denoise
        for name in AWAY[:2]:
            if hasattr(dit, name):
                self.add_module(name, getattr(dit, name))
        # diffusers traces the order of the blocks only if the module has something of its own.
        self.register_buffer("anchor", torch.zeros(1, device=device), persistent=False)

    def forward(self, x_BCFHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        return self.denoise(x_BCFHW, t_B, condition)


def grouped(dit: WanDiT, device: torch.device) -> Velocity:
    """`dit.denoise` on `device`, with the blocks' weights on the CPU between their turns.

    What is computed once per request (`WanDiT.condition`) calls single layers of the blocks: these
    visit. On a card copies run on a stream of their own, from pinned memory.
    """
    once = [block.cross_attn for name in AWAY[:2] for block in _blocks(dit, name)]
    layers = [layer for attention in once for layer in (attention.k, attention.v, attention.norm_k)]
    for block in _blocks(dit, AWAY[2]):
        layers += [layer for layer in block.modules() if layer._parameters]
    for layer in layers:
        visit(layer, device)
    steps = _Steps(dit, device)
    apply_group_offloading(
        steps,
        onload_device=device,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda",
    )
    return steps


def _blocks(dit: WanDiT, name: str) -> list[Any]:
    return list(getattr(dit, name, ()))
