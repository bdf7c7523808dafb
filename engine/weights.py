"""Weights from a file straight into a model, each tensor at once in its precision, on its device.

    without_contents     builds a model whose parameters have shapes and no memory
    fill                 compares names and shapes with the file's header, then reads, converts,
                         checks and assigns one tensor after the other
    refill               the same over weights that are there

So a model takes its own size and one tensor more, and what is no model of this kind is refused
before anything of it is read. The file is mapped into memory, nothing in the model points to it
afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from engine.checkpoint import BESIDE, check_names, read_value, tensor_names
from engine.errors import CheckpointError

CPU = torch.device("cpu")
_BUILDING = threading.RLock()


@contextmanager
def without_contents() -> Iterator[None]:
    """Models built within have their parameters on torch's meta device; buffers are real.

    One thread at a time, and what others build meanwhile has contents.
    """
    builder = threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # What is there already stays the same object: tied weights stay tied.
        here = threading.get_ident() == builder
        if here and parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with _BUILDING:
        register = nn.Module.register_parameter
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign,assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def fill(
    module: nn.Module,
    path: Path,
    device: torch.device = CPU,
    dtype_of: Callable[[str], torch.dtype] = lambda name: torch.float32,
    shrink: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
    beside: Collection[str] = (),
) -> None:
    """Gives every parameter of `module` its weights, buffers the device, and freezes all.

    The file holds every parameter once, tied ones under their first name.

    Args:
        dtype_of: the precision of a parameter. shrink: what is kept of it, such as its int8 form.
        beside: names in the file that are not the module's.

    Raises:
        CheckpointError: the file cannot be read; a name is missing or unknown, a shape differs,
            a number is not finite. The message names file and tensor.
    """
    own, places = dict(module.named_parameters()), _places(module)
    with opened(path) as file:
        there = set(file.keys()) - set(beside)
        held = {name: x for name, x in _shapes(file).items() if name in there}
        check_names(own, held, path.name)
        tensor_names(there, path.name)
        for name, parameter in own.items():
            value = read(file, name, path.name, there)
            value = value.to(device, dtype_of(name), copy=True)
            check_finite(value, name, path.name)
            frozen = nn.Parameter(shrink(name, value), requires_grad=False)
            for owner, attribute in places[id(parameter)]:
                owner._parameters[attribute] = frozen
    for owner in module.modules():
        for attribute, buffer in owner._buffers.items():
            owner._buffers[attribute] = None if buffer is None else buffer.to(device)


@torch.no_grad()
def refill(module: nn.Module, path: Path) -> None:
    """Writes a file's weights over those that a filled module has, where they lie, in their
    precision: what was compiled or captured over them goes on with the new ones.

    Raises:
        CheckpointError: as `fill`; some of the weights may be new by then.
    """
    own = dict(module.named_parameters())
    with opened(path) as file:
        there = set(file.keys())
        check_names(own, _shapes(file), path.name)
        tensor_names(there, path.name)
        for name, parameter in own.items():
            parameter.copy_(read(file, name, path.name, there))
            check_finite(parameter, name, path.name)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, mapped. What cannot be read of it is a CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error


def check_finite(value: Tensor, name: str, label: str) -> None:
    """One pass over the numbers. Raises CheckpointError."""
    if value.numel() and not all(bound.isfinite() for bound in torch.aminmax(value)):
        raise CheckpointError(f"{label}: {name} holds numbers that are not finite")


def shapes(path: Path) -> dict[str, Tensor]:
    """The tensors of a file without contents, from its header alone. Raises CheckpointError."""
    with opened(path) as file:
        tensor_names(set(file.keys()), path.name)
        return _shapes(file)


def _shapes(file: Any) -> dict[str, Tensor]:
    names = (name for name in file.keys() if not name.endswith(BESIDE))
    return {n: torch.empty(file.get_slice(n).get_shape(), device="meta") for n in names}


def read(file: Any, name: str, label: str, there: Collection[str]) -> Tensor:
    """One tensor of an opened file, see `read_value`. there: all names of the file.

    Raises CheckpointError.
    """
    value = read_value(file.get_tensor, name, label, there)
    if not value.is_floating_point():
        raise CheckpointError(f"{label}: {name} is {value.dtype}, not a floating type")
    return value


def _places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Where each parameter is held; a tied one in several places."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            places.setdefault(id(parameter), []).append((owner, name))
    return places
