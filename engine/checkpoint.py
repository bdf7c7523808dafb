"""Tensors on disk: written rounded, read back whole, loaded under exactly the names of a module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from engine.change import CHANGE, CHANGE_STEP, LEVELS, changed, coded, step_of
from engine.errors import CheckpointError

# Statistics stay exact on disk, whatever the weights are rounded to.
EXACT = ("latents_mean", "latents_std")
GRID_STEP = ".grid_step"  # beside an int8 tensor: what one of its numbers is worth
BESIDE = (GRID_STEP, CHANGE, CHANGE_STEP)  # ends of the names that belong to another tensor


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
    """All tensors of a safetensors file, floating ones as fp32, and so those on a grid, with their
    changes (`engine.change`).

    Raises:
        CheckpointError: the file is missing or not of this format, a grid has no step, a change
            does not fit.
    """
    return values(open_tensors(path), str(path))


def values(loaded: Mapping[str, Tensor], label: str) -> dict[str, Tensor]:
    """What the entries of a file are worth, as `read_tensors`. Raises CheckpointError."""
    names = tensor_names(loaded, label)
    tensors = {name: read_value(loaded.__getitem__, name, label, loaded) for name in names}
    tensors = {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
    bare = sorted(name for name, value in tensors.items() if value.dtype == torch.int8)
    _complain(label, "lacks the grid step of", bare)
    return tensors


def tensor_names(there: Collection[str], label: str) -> list[str]:
    """The names in a file that are tensors, and not beside one. Raises CheckpointError."""
    own = {name: None for name in there if not name.endswith(BESIDE)}
    for name in sorted(there):
        for end in BESIDE:
            if name.endswith(end) and name.removesuffix(end) not in own:
                raise CheckpointError(f"{label}: {name} is the step of no tensor")
    return list(own)


def read_value(
    read: Callable[[str], Tensor], name: str, label: str, there: Collection[str]
) -> Tensor:
    """One tensor of a file: off its grid if it is on one, with its change if it has one, then
    fp32; any other as it is.

    Args:
        read: gives the entry of a name. there: all names of the file.

    Raises CheckpointError.
    """
    value = read(name)
    if name + GRID_STEP in there:
        value = off_grid(value, read(name + GRID_STEP), name, label)
    ends = (CHANGE, CHANGE_STEP)
    code, step = (read(name + end) if name + end in there else None for end in ends)
    if code is None and step is None:
        return value
    if not value.is_floating_point():
        raise CheckpointError(f"{label}: {name} is {value.dtype}, which has no change")
    return changed(value, code, step, f"{label}: {name}")


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


def in_steps(name: str, tensor: Tensor, spacing: float) -> dict[str, Tensor]:
    """A matrix as whole numbers of `engine.change.step_of` it, by a grid of 15 steps, where nearly
    all are 0, and a change; vectors, and what is all 0, stay as they are. Half a step to the root
    mean square takes a sixth less so than by `on_grid`, where files are compressed. `read_tensors`
    is the way back.

    Raises CheckpointError: it has no size, or none that is finite."""
    if tensor.ndim < 2 or not bool(tensor.any()):
        return {name: tensor}
    step = step_of(tensor.float(), spacing)
    if not 0 < float(step) < float("inf"):
        raise CheckpointError(f"{name} has no steps: its size is {float(step)}")
    number = torch.round(tensor.float() / step)
    far = torch.round(number / LEVELS)
    grid = {name: far.to(torch.int8), name + GRID_STEP: (LEVELS * step).view(1)}
    return grid | coded(name, number - LEVELS * far, step)


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
    return torch.float32 if name in EXACT or name.endswith(BESIDE) else dtype
