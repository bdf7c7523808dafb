"""The stream of a run's batches: a function of the batch's index, made here or in worker processes.

Torch's global generator is seeded with (run's seed, batch index) before every batch, so a run has
no random state to keep and no position in its data but the number of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from training.dist import Group

BatchFn = Callable[[int], Any]


class Stream(Protocol):
    """What of a run's configuration its batches depend on."""

    @property
    def seed(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def prefetch(self) -> int: ...


def seed_for(seed: int, index: int) -> None:
    """Torch's global generator as a function of (run, batch): the whole random state of a run."""
    mixed = (seed * 1_000_003 + index * 7_919 + 17) % (2**63)
    # What torch.manual_seed does, without the traceback that it keeps for each kind of device that
    # is not there: 2 to 5 ms a batch.
    torch.default_generator.manual_seed(mixed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(mixed)


class _Batches(Dataset[Any]):
    """`batch_fn` with its randomness pinned to the index, for the loop and its workers alike."""

    def __init__(self, batch_fn: BatchFn, seed: int) -> None:
        self.batch_fn = batch_fn
        self.seed = seed

    def __getitem__(self, index: int) -> Any:
        seed_for(self.seed, index)
        return self.batch_fn(index)


@dataclass(frozen=True)
class _Indices:
    """This process's batch indices from an update on, without end."""

    step: int
    accumulate: int
    group: Group

    def __iter__(self) -> Iterator[int]:
        step = self.step
        while True:
            for micro in range(self.accumulate):
                yield (step * self.accumulate + micro) * self.group.size + self.group.rank
            step += 1


def batches(config: Stream, batch_fn: BatchFn, step: int, group: Group) -> Iterator[Any]:
    """(index, batch) pairs; with `prefetch`, made in worker processes in the same order."""
    source = _Batches(batch_fn, config.seed)
    indices = _Indices(step, config.accumulate, group)
    if not config.prefetch:
        for index in indices:
            yield index, source[index]
    loader: DataLoader[Any] = DataLoader(
        source,
        batch_size=None,
        sampler=indices,  # type: ignore[arg-type]
        num_workers=config.prefetch,
        prefetch_factor=4,
    )
    yield from zip(indices, loader, strict=True)
