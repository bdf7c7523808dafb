"""One optimizer for a whole model: Muon for hidden matrices, AdamW for everything else.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a weight
matrix is replaced by the nearest semi-orthogonal matrix, found with five Newton-Schulz steps.
`torch.optim.Muon` refuses convolutions, so this one is our own: a convolution [out, in, *kernel]
counts as the matrix [out, in * prod(kernel)], and matrices of one shape are stacked and
orthogonalised in one batched product.

Sharded models (FSDP2) take AdamW alone: a slice of a matrix has no singular vectors.

Legend: N stacked matrices of one shape, R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.dist import local

# Inputs and outputs of a model are not "hidden": their rows are symbols or pixels, not features.
NOT_HIDDEN = r"embed|head|conv_in|conv_out|patchify"
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # of the Muon post; converges to about [.7, 1.2]


@dataclass(frozen=True)
class OptimConfig:
    """lr: AdamW's rate; muon_lr: Muon's (None: AdamW for all); decay: decoupled, both sides."""

    lr: float = 1e-3
    muon_lr: float | None = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    momentum: float = 0.95
    weight_decay: float = 0.0
    not_hidden: str = NOT_HIDDEN


def _matmul_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the machine multiplies it in hardware; elsewhere it is slower than fp32."""
    if device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32


def orthogonalise(g_NRC: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz: each [R, C] matrix of the stack to (nearly) the closest semi-orthogonal."""
    a, b, c = _NEWTON_SCHULZ
    tall = g_NRC.shape[1] > g_NRC.shape[2]
    x_NRC = g_NRC.mT if tall else g_NRC
    x_NRC = x_NRC / (x_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x_NRC = x_NRC.to(_matmul_dtype(g_NRC.device)).contiguous()
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        poly_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, poly_NRR, x_NRC, beta=a)
    x_NRC = x_NRC.mT if tall else x_NRC
    return x_NRC.to(g_NRC.dtype)


def hidden_matrices(model: nn.Module, not_hidden: str = NOT_HIDDEN) -> set[str]:
    """Names of the trainable weights that Muon takes: Linear and Conv weights inside the model."""
    pattern = re.compile(not_hidden)
    names = set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        weight = module.weight
        thin = min(weight.shape[0], weight[0].numel()) < 2
        if weight.requires_grad and not thin and not pattern.search(name):
            names.add(f"{name}.weight")
    return names


class Optimizer:
    """Muon + AdamW over the trainable parameters of `model`, with a flat, named tensor state."""

    def __init__(self, model: nn.Module, config: OptimConfig) -> None:
        hidden = set() if config.muon_lr is None else hidden_matrices(model, config.not_hidden)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.config = config
        self.matrices = {n: p for n, p in named.items() if n in hidden}
        self.others = {n: p for n, p in named.items() if n not in hidden}
        self.momentum = {n: torch.zeros_like(p) for n, p in self.matrices.items()}
        self.adamw = self._build_adamw()

    def _build_adamw(self) -> torch.optim.AdamW | None:
        if not self.others:
            return None
        config = self.config
        # Norm gains, biases and vectors are scales, not maps: shrinking them has no meaning.
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.others.values() if p.ndim >= 2]},
            {"params": [p for p in self.others.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        decay = config.weight_decay
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=config.betas, weight_decay=decay, foreach=True
        )

    def parameters(self) -> list[Tensor]:
        return [*self.matrices.values(), *self.others.values()]

    def zero_grad(self) -> None:
        for parameter in self.parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update with both learning rates multiplied by `factor` (the schedule)."""
        if self.adamw is not None:
            for group in self.adamw.param_groups:
                group["lr"] = self.config.lr * factor
            self.adamw.step()
        stacks: dict[tuple[int, int], list[str]] = defaultdict(list)
        for name, parameter in self.matrices.items():
            if parameter.grad is not None:
                stacks[parameter.shape[0], parameter[0].numel()].append(name)
        for (rows, columns), names in stacks.items():
            self._muon(names, rows, columns, factor)

    def _muon(self, names: Sequence[str], rows: int, columns: int, factor: float) -> None:
        """Nesterov momentum, then orthogonalise; scaled so that tall matrices do not lag."""
        config = self.config
        assert config.muon_lr is not None
        rate = config.muon_lr * factor
        weights: list[Tensor] = [self.matrices[n] for n in names]
        grads = [w.grad for w in weights if w.grad is not None]
        momenta = [self.momentum[n] for n in names]
        torch._foreach_lerp_(momenta, grads, 1 - config.momentum)
        ahead = torch._foreach_lerp(grads, momenta, config.momentum)
        update_NRC = orthogonalise(torch.stack([u.reshape(rows, columns) for u in ahead]))
        scale = max(1.0, rows / columns) ** 0.5
        if config.weight_decay:
            torch._foreach_mul_(weights, 1 - rate * config.weight_decay)
        for weight, update in zip(weights, update_NRC, strict=True):
            weight.add_(update.view_as(weight), alpha=-rate * scale)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by parameter name; safetensors can hold it."""
        tensors = {f"momentum.{n}": m for n, m in self.momentum.items()}
        if self.adamw is not None:
            for name, parameter in self.others.items():
                for key, value in self.adamw.state.get(parameter, {}).items():
                    tensors[f"{key}.{name}"] = value
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`; KeyError when the model has matrices that the state lacks."""
        for name, momentum in self.momentum.items():
            local(momentum).copy_(tensors[f"momentum.{name}"])
        if self.adamw is None:
            return
        for name, parameter in self.others.items():
            if f"step.{name}" not in tensors:
                continue
            state = {"step": tensors[f"step.{name}"].clone()}
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.zeros_like(parameter)
                local(state[key]).copy_(tensors[f"{key}.{name}"])
            self.adamw.state[parameter] = state
