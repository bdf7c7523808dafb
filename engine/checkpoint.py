"""Tensors on disk: written rounded, read back whole, loaded under exactly the names of a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from engine.errors import CheckpointError

# Statistics stay exact on disk, whatever the weights are rounded to.
EXACT = ("latents_mean", "latents_std")
GRID_STEP = ".grid_step"  # beside an int8 tensor: what one of its numbers is worth


def tensor_bytes(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> bytes:
    """A safetensors file of these tensors, floating ones rounded to `dtype`."""
    rounded = {
        name: value.detach().cpu().to(_disk_dtype(name, value, dtype)).contiguous()
        for name, value in tensors.items()
    }
    return save(rounded)


def open_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file as they are on disk.

    Raises CheckpointError: the file is missing or not of this format.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, floating ones as fp32, and so those on a grid.

    Raises:
        CheckpointError: the file is missing or not of this format, or a grid has no step.
    """
    loaded = open_tensors(path)
    steps = {name: loaded.pop(name) for name in list(loaded) if name.endswith(GRID_STEP)}
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in loaded.items()
    }
    for name, step in steps.items():
        own = name.removesuffix(GRID_STEP)
        tensors[own] = off_grid(tensors.get(own), step, own, str(path))
    bare = sorted(name for name, value in tensors.items() if value.dtype == torch.int8)
    _complain(str(path), "lacks the grid step of", bare)
    return tensors


def grid_step(weight: Tensor, steps: int) -> Tensor:
    """The step of a matrix's grid: `steps` of them in its root mean square, fewer where its largest
    value needs it."""
    return torch.maximum(weight.square().mean().sqrt() / steps, weight.abs().max() / 127)


def on_grid(name: str, weight: Tensor, steps: int) -> dict[str, Tensor]:
    """A matrix as int8 multiples of one step, see `grid_step`; vectors stay as they are.
    `read_tensors` is the way back."""
    if weight.ndim < 2 or not bool(weight.any()):
        return {name: weight}
    wide = weight.float()
    step = grid_step(wide, steps)
    if not 0 < float(step) < float("inf"):
        raise CheckpointError(f"{name} has no grid: its size is {float(step)}")
    return {name: torch.round(wide / step).to(torch.int8), name + GRID_STEP: step.view(1)}


def off_grid(numbers: Tensor | None, step: Tensor, name: str, label: str) -> Tensor:
    """What int8 multiples of a step are worth, fp32. Raises CheckpointError."""
    if numbers is None or numbers.dtype != torch.int8 or step.numel() != 1:
        raise CheckpointError(f"{label}: {name}{GRID_STEP} is the step of no int8 tensor")
    if not 0 < float(step) < float("inf"):
        raise CheckpointError(f"{label}: {name}{GRID_STEP} must be a positive number")
    return numbers.float() * step.float()


def load_strict(
    module: nn.Module, source: Path | Mapping[str, Tensor], name: str | None = None
) -> None:
    """Loads every tensor of `module`, and no other, keeping the module's own precision.

    Args:
        source: a safetensors file, or tensors already read.
        name: how to call the source in errors.

    Raises:
        CheckpointError: naming the keys that are missing, unknown or of another shape.
    """
    if isinstance(source, Mapping):
        tensors, label = source, name or "the weights"
    else:
        tensors, label = read_tensors(Path(source)), name or Path(source).name
    check_names(module.state_dict(), tensors, label)
    module.load_state_dict(dict(tensors), strict=True)


def check_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], label: str) -> None:
    """Raises CheckpointError unless both have the same names and shapes."""
    _complain(label, "lacks", sorted(own.keys() - tensors.keys()))
    _complain(label, "has the unknown", sorted(tensors.keys() - own.keys()))
    wrong = [
        f"{key} is {tuple(tensors[key].shape)}, not {tuple(own[key].shape)}"
        for key in sorted(own)
        if tensors[key].shape != own[key].shape
    ]
    _complain(label, "has another shape:", wrong)


def _complain(label: str, what: str, keys: list[str]) -> None:
    if keys:
        rest = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        raise CheckpointError(f"{label} {what} {', '.join(keys[:5])}{rest}")


def _disk_dtype(name: str, value: Tensor, dtype: torch.dtype) -> torch.dtype:
    if not value.is_floating_point():
        return value.dtype
    return torch.float32 if name in EXACT or name.endswith(GRID_STEP) else dtype
