"""Rewards drawn by lot: the control of a run. What it changes is not the reward's doing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.rewards.door import TOTAL, Reward

TRUE = "true_reward"


@dataclass(frozen=True)
class Chance:
    """In place of `TOTAL` a number in [0, 1) that hangs on the frames' bytes and on nothing that
    they show: the same frames are given the same, after an interruption too.

    reward: its numbers are told; its total as `TRUE`.
    """

    reward: Reward

    def __call__(self, frames_BFHWC: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
        found = self.reward(frames_BFHWC, samples)
        drawn = [_number(frames_FHWC) for frames_FHWC in frames_BFHWC]
        return found | {TRUE: found[TOTAL], TOTAL: torch.tensor(drawn, dtype=found[TOTAL].dtype)}


def _number(frames_FHWC: Tensor) -> float:
    digest = hashlib.sha256(frames_FHWC.contiguous().cpu().numpy().tobytes()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
