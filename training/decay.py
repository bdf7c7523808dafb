"""How the learning rate of a run falls, and when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.loop import LoopConfig
    from training.state import Position


def rate_factor(config: LoopConfig, position: Position) -> float:
    """Learning rate at this position as a part of its peak, in [final, 1]."""
    step, final = position.step, config.final
    warm = min(1.0, (step + 1) / max(config.warmup, 1))
    if config.schedule == "cosine":
        assert config.steps is not None
        part = min(1.0, step / max(config.steps, 1))
        return warm * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * part)))
    begin, length = decay_window(config, position)
    if config.schedule == "constant" or begin is None or step < begin:
        return warm
    part = min(1.0, (step - begin + 1) / max(length, 1))
    return warm * (1 - (1 - final) * part)


def decay_window(config: LoopConfig, position: Position) -> tuple[int | None, int]:
    """(first step of the decay, its length): as asked for during the run, else from the plan."""
    if position.decay_start is not None:
        return position.decay_start, position.decay_steps
    if config.steps is None:
        return None, 0
    length = max(1, round(config.steps * config.decay_fraction))
    return config.steps - length, length


def is_decaying(config: LoopConfig, position: Position) -> bool:
    """Whether the final decay of a "wsd" schedule has begun."""
    begin, _ = decay_window(config, position)
    return config.schedule == "wsd" and begin is not None and position.step >= begin
