"""The door between rollouts and rewards.

Legend: B rollouts, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from engine.errors import TroupeError

TOTAL = "reward"

Reward = Callable[[Tensor, Sequence[Any]], dict[str, Tensor]]
"""(decoded frames uint8 [B, F, H, W, 3], the sample of each) -> numbers [B] by name. `TOTAL` is
learned from; the others are logged, each in [0, 1], 1 is best."""


class RewardError(TroupeError):
    """A scorer that cannot judge these rollouts; the message says why."""


def judged(reward: Reward, frames: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
    """The reward's numbers; where its scorer fails only `TOTAL`, not a number, which drops the
    group and not the run."""
    try:
        return reward(frames, samples)
    except RewardError:
        return {TOTAL: torch.full((len(samples),), torch.nan)}
