"""Training for the grid on which weights ship: forward and backward see rounded matrices.

The straight-through estimator (Bengio et al. 2013, arXiv 1308.3432): gradients are those at the
rounded point, updates go to the exact weights, which are what a run saves and averages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from engine.checkpoint import grid_step


@contextmanager
def rounded(model: nn.Module, steps: int) -> Iterator[None]:
    """Inside, every matrix of `model` lies on the grid of `engine.checkpoint.on_grid`; afterwards
    all are what they were, bit for bit. In place: compiled code notices nothing."""
    exact = [(p, p.detach().clone()) for p in model.parameters() if p.ndim >= 2 and p.any()]
    try:
        with torch.no_grad():
            for parameter, weight in exact:
                step = grid_step(weight.float(), steps)
                parameter.copy_(torch.round(weight.float() / step) * step)
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in exact:
                parameter.copy_(weight)
