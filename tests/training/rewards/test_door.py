"""The door: what a reward is, and what becomes of one that fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.rewards.door import TOTAL, RewardError, judged, judged_by_frame


def test_a_scorer_that_fails_leaves_no_number_and_no_hole() -> None:
    def broken(frames: Tensor, samples: object) -> dict[str, Tensor]:
        raise RewardError("no face detector")

    found = judged(broken, torch.zeros(3, 1, 2, 2, 3), ["a"] * 3)
    assert list(found) == [TOTAL] and found[TOTAL].isnan().all() and len(found[TOTAL]) == 3


def test_each_latent_frame_is_judged_by_the_last_frame_that_it_decodes_to() -> None:
    """Wan's VAE: the first latent frame is one frame, every other is four."""
    frames = torch.arange(2 * 9).view(2, 9, 1, 1, 1)
    asked: list[object] = []

    def number(shown: Tensor, samples: list[str]) -> dict[str, Tensor]:
        assert shown.shape == (6, 1, 1, 1, 1)
        asked.extend(samples)
        return {TOTAL: shown.flatten().double()}

    found = judged_by_frame(number, frames, ["a", "b"], num_parts=3)
    assert found[TOTAL].tolist() == [[0, 4, 8], [9, 13, 17]]
    assert asked == ["a"] * 3 + ["b"] * 3
    one = judged_by_frame(lambda f, s: {TOTAL: torch.ones(2)}, frames[:, :1], ["a", "b"], 1)
    assert one[TOTAL].shape == (2, 1)


def test_a_scorer_that_fails_fails_for_all_frames() -> None:
    def broken(frames: Tensor, samples: object) -> dict[str, Tensor]:
        raise RewardError("no face detector")

    found = judged_by_frame(broken, torch.zeros(3, 5, 2, 2, 3), ["a"] * 3, 2)
    assert found[TOTAL].shape == (3, 2) and found[TOTAL].isnan().all()


def test_a_bug_is_not_a_failing_scorer() -> None:
    with pytest.raises(ZeroDivisionError):
        judged(lambda frames, samples: {TOTAL: torch.ones(3) / (1 // 0)}, torch.zeros(3), [1] * 3)
