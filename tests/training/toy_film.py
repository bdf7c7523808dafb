"""The plane's flow as a film: every frame is a point of `toy_flow`, and frames know nothing of each
other. What a frame's noise does shows in that frame alone.

Legend: B rows, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from tests.training import toy_flow
from training.rewards.door import TOTAL

FRAMES = 4


class Film(nn.Module):
    """v of latents [B, 2, F, 1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = toy_flow.plane()

    def forward(self, x: Tensor, t_B: Tensor, prompt_BP: Tensor) -> Tensor:
        num = x.shape[2]
        points = x.movedim(2, 1).flatten(0, 1).flatten(1)
        rows = (part.repeat_interleave(num, 0) for part in (t_B, prompt_BP))
        return self.plane(points, *rows).unflatten(0, (-1, num)).movedim(1, 2)[..., None, None]


class FilmPolicy(toy_flow.PlanePolicy):
    """Frames are [B, F, 2, 1, 1], as the decoder of this world makes them."""

    shape = (2, FRAMES, 1, 1)

    def frames(self, model: nn.Module, latents: Tensor) -> Tensor:
        return latents.movedim(2, 1)


def near(frames: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
    """Reward: minus the distance to the first mode, the mean over the frames that there are."""
    way_BF = (frames.flatten(2) - toy_flow.MODES[0]).norm(dim=2)
    return {TOTAL: -way_BF.mean(1)}
