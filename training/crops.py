"""What an imperfect detector and a generated picture do to a crop; readers learn to bear it.

Legend: N crops, C=3 colours, H W pixels. Pictures are fp32 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.crops import shaken


def jitter(squares_N3: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Squares as an imperfect detector would give them, see `shaken`; each its own way."""
    noise_N3 = torch.rand(squares_N3.shape, generator=generator) * 2 - 1
    return shaken(squares_N3, noise_N3, amount)


def wear(crops_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """What a codec and a denoiser do to a picture, so that readers trained on clean renders also
    read generated frames: blur, lost resolution, shifted colour, noise; a quarter stays clean."""

    def pick(share: float) -> Tensor:
        return torch.rand(len(crops_NCHW), 1, 1, 1, generator=generator) < share

    blurred = F.avg_pool2d(F.pad(crops_NCHW, (1, 1, 1, 1), "replicate"), 3, 1)
    x = torch.where(pick(0.4), blurred, crops_NCHW)
    coarse = F.interpolate(x, scale_factor=0.5, mode="area")
    coarse = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)
    x = torch.where(pick(0.3), coarse, x)
    gain = 1 + 0.12 * torch.randn(len(x), 3, 1, 1, generator=generator)
    shift = 0.06 * torch.randn(len(x), 3, 1, 1, generator=generator)
    x = torch.where(pick(0.5), x * gain + shift, x)
    loud = 0.12 * torch.rand(len(x), 1, 1, 1, generator=generator)
    noise = loud * torch.randn(x.shape, generator=generator)
    return torch.where(pick(0.5), x + noise, x).clamp(-1, 1)


def occlude(crops_NCHW: Tensor, generator: torch.Generator, share: float = 0.25) -> Tensor:
    """In `share` of the crops a side is covered by a piece of another crop of the batch, as when
    one character walks in front of another."""
    count, _, height, width = crops_NCHW.shape
    other = crops_NCHW.roll(1, 0)
    cover = torch.randint(width // 8, width // 3, (count, 1, 1, 1), generator=generator)
    from_left = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    column = torch.arange(width).view(1, 1, 1, -1)
    mask = torch.where(from_left, column < cover, column >= width - cover)
    mask = mask & (torch.rand(count, 1, 1, 1, generator=generator) < share)
    return torch.where(mask.expand(-1, -1, height, -1), other, crops_NCHW)
