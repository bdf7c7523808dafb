"""The policy that reinforcement started from, which it is kept near to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Reference:
    """A frozen copy of all that is trained, taken when it is made: before a run is resumed.

    Under LoRA these are the adapters with the values that they had, so that a policy which was
    itself trained as a LoRA is the reference, and not the base model below it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.kept: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Inside, `model` is the reference, without gradients; then it is itself again, to the bit.

        Not to be entered between a forward of `model` and its backward.
        """
        live = {name: p for name, p in model.named_parameters() if name in self.kept}
        own = {name: p.data for name, p in live.items()}
        try:
            for name, parameter in live.items():
                parameter.data = self.kept[name].to(parameter.device)
            with torch.no_grad():
                yield
        finally:
            for name, parameter in live.items():
                parameter.data = own[name]
