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


def judged_by_frame(
    reward: Reward, frames: Tensor, samples: Sequence[Any], num_parts: int
) -> dict[str, Tensor]:
    """The reward of each latent frame, numbers [B, P]: of the last of the frames that it decodes
    to, as if that were all of the video. frames: of `num_parts` latent frames, F = 1 + s (P - 1).
    """
    num_frames = frames.shape[1]
    stride = (num_frames - 1) // max(num_parts - 1, 1)
    assert num_frames == 1 + stride * (num_parts - 1), (num_frames, num_parts)
    alone = frames[:, :: max(stride, 1)].flatten(0, 1)[:, None]
    found = judged(reward, alone, [sample for sample in samples for _ in range(num_parts)])
    return {name: value.unflatten(0, (-1, num_parts)) for name, value in found.items()}


def judged(reward: Reward, frames: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
    """The reward's numbers; where its scorer fails only `TOTAL`, not a number, which drops the
    group and not the run."""
    try:
        return reward(frames, samples)
    except RewardError:
        return {TOTAL: torch.full((len(samples),), torch.nan)}
