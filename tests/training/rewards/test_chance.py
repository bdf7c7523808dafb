"""The control's rewards say nothing of the frames, and are the same for the same."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.rewards.chance import TRUE, Chance
from training.rewards.door import TOTAL


def brightness(frames: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
    return {TOTAL: frames.double().mean((1, 2, 3, 4)) / 255, "part": torch.ones(len(samples))}


def test_it_is_drawn_by_lot_from_the_frames_alone() -> None:
    frames = torch.randint(0, 256, (2000, 1, 2, 2, 3), dtype=torch.uint8)
    found = Chance(brightness)(frames, range(2000))
    again = Chance(brightness)(frames.flip(0), range(2000))
    assert torch.equal(found[TOTAL].flip(0), again[TOTAL])
    assert found[TOTAL].min() >= 0 and found[TOTAL].max() < 1
    # Uniform, and as good as uncorrelated with what the reward says: 4 standard errors.
    assert abs(found[TOTAL].mean() - 0.5) < 4 * (1 / 12 / 2000) ** 0.5
    both = torch.stack([found[TOTAL], found[TRUE]])
    assert abs(torch.corrcoef(both)[0, 1]) < 4 / 2000**0.5
    assert torch.equal(found[TRUE], brightness(frames, range(2000))[TOTAL])
    assert torch.equal(found["part"], torch.ones(2000))
