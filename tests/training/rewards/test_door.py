"""The door: what a reward is, and what becomes of one that fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.rewards.door import TOTAL, RewardError, judged


def test_a_scorer_that_fails_leaves_no_number_and_no_hole() -> None:
    def broken(frames: Tensor, samples: object) -> dict[str, Tensor]:
        raise RewardError("no face detector")

    found = judged(broken, torch.zeros(3, 1, 2, 2, 3), ["a"] * 3)
    assert list(found) == [TOTAL] and found[TOTAL].isnan().all() and len(found[TOTAL]) == 3


def test_a_bug_is_not_a_failing_scorer() -> None:
    with pytest.raises(ZeroDivisionError):
        judged(lambda frames, samples: {TOTAL: torch.ones(3) / (1 // 0)}, torch.zeros(3), [1] * 3)
