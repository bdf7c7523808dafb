"""The policy that reinforcement started from, which it is kept near to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from training.dist import local


class Reference:
    """A frozen copy of all that is trained, as it is at `take`: before a run is resumed.

    Under LoRA these are the adapters with the values that they had, so that a policy which was
    itself trained as a LoRA is the reference, and not the base model below it.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.kept: dict[str, Tensor] = {}
        if model is not None:
            self.take(model)

    def take(self, model: nn.Module) -> None:
        """Of a sharded model each process keeps its slices."""
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.kept = {name: local(p.detach()).clone() for name, p in trained}

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` is the reference, without gradients; then it is itself again, to the bit.

        Not to be entered between a forward of `model` and its backward.
        """
        live = {name: p for name, p in model.named_parameters() if name in self.kept}
        # FSDP gathers from the storage that it knows: slices are overwritten, not exchanged.
        slices = {name: local(p.detach()) for name, p in live.items() if isinstance(p, DTensor)}
        own = {n: slices[n].clone() if n in slices else p.data for n, p in live.items()}
        try:
            self._put(live, slices, self.kept)
            with torch.no_grad():
                yield
        finally:
            self._put(live, slices, own)

    @staticmethod
    def _put(
        live: Mapping[str, nn.Parameter], slices: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> None:
        for name, parameter in live.items():
            if name in slices:
                slices[name].copy_(values[name])
            else:
                parameter.data = values[name].to(parameter.device)
