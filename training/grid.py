"""Training for the form in which weights ship: forward and backward see it.

    rounded    matrices on a grid             `engine.checkpoint.on_grid`
    near       a base and a change to it      `engine.change.nearest`
    packed     steps, by a grid and a change  `engine.checkpoint.in_steps`

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): gradients are those at the
rounded point, updates go to the exact weights, which are what a run saves and averages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.change import CHANGE, CHANGE_STEP, changes, nearest, step_of, without_changes
from engine.checkpoint import grid_step, open_tensors, values

READER_SPACING = 0.6  # of the readers' steps: 2.8 bits, a thirtieth of the square is lost


def rounded(model: nn.Module, steps: int) -> AbstractContextManager[None]:
    """Inside, every matrix that learns lies on the grid of `engine.checkpoint.on_grid`; afterwards
    all are what they were, bit for bit. In place: compiled code notices nothing."""
    return _whole_steps(model, lambda weight: grid_step(weight, steps))


@contextmanager
def near(model: nn.Module, base: Mapping[str, Tensor], spacing: float) -> Iterator[None]:
    """Inside, every parameter that learns is the base's with the change of `nearest`; afterwards
    all are what they were, bit for bit.

    base: by the names of the model's parameters. spacing: see there.
    """

    def with_change(name: str, weight: Tensor) -> Tensor:
        return base[name] + nearest(weight - base[name], spacing)

    with _replaced(model, with_change):
        yield


def packed(model: nn.Module, spacing: float) -> AbstractContextManager[None]:
    """Inside, every matrix that learns is worth what `engine.checkpoint.in_steps` makes of it;
    afterwards all are what they were, bit for bit."""
    return _whole_steps(model, lambda weight: step_of(weight, spacing))


def origin(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a model's file was before its first change: its entries as they are on disk, and its
    tensors, fp32. Later versions change the origin too, so that they have its bytes in common.

    Raises CheckpointError.
    """
    before = without_changes(open_tensors(path))
    return before, values(before, path.name)


def with_changes(
    origin_file: Path, spacing: float, tuned: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The entries of a file that holds the origin as it is, and beside it what makes it nearly
    `tuned`. Raises CheckpointError."""
    today = open_tensors(origin_file)
    entries = without_changes(today)
    base, now = (values(part, origin_file.name) for part in (entries, today))
    for name, value in base.items():
        wanted = tuned[name].detach().float().cpu()
        if torch.equal(wanted, now[name]):  # frozen: what it has stays, to the byte
            entries |= {n: today[n] for n in (name + CHANGE, name + CHANGE_STEP) if n in today}
        else:
            entries |= changes(name, wanted - value, spacing)
    return entries


@contextmanager
def _whole_steps(model: nn.Module, step_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, every matrix that learns is whole numbers of its step; `step_of` is told it in
    fp32."""

    def stepped(name: str, weight: Tensor) -> Tensor:
        if weight.ndim < 2 or not bool(weight.any()):
            return weight
        step = step_of(weight.float())
        return torch.round(weight.float() / step) * step

    with _replaced(model, stepped):
        yield


@contextmanager
def _replaced(model: nn.Module, change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    exact = [(name, p, p.detach().clone()) for name, p in learning]
    try:
        with torch.no_grad():
            for name, parameter, weight in exact:
                parameter.copy_(change(name, weight))
        yield
    finally:
        with torch.no_grad():
            for _, parameter, weight in exact:
                parameter.copy_(weight)
