"""Boxes to crops, and the wear that a generated picture shows, as differentiable tensor code.

Legend: N pictures or crops, C=3 colours, H W pixels, S=4 box corners (left, top, right, bottom) in
pixels of the picture. Pictures are fp32 in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CROP = 48
"""Side of the square that every reader of characters looks at, pixels."""
CONTEXT = 1.15
"""A crop's side as a multiple of its box's longer side: a hat's tip must not be cut off."""


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 [..., H, W, 3] -> fp32 [..., 3, H, W] in [-1, 1]."""
    return pixels.movedim(-1, -3).float() / 127.5 - 1


def squares(boxes_NS: Tensor, context: float = CONTEXT) -> Tensor:
    """Boxes [N, 4] -> (centre x, centre y, side) [N, 3] of the square that is cut out."""
    x0, y0, x1, y1 = boxes_NS.float().unbind(-1)
    side = torch.maximum(x1 - x0, y1 - y0).clamp_min(4.0) * context
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, side], -1)


def cut(pictures_NCHW: Tensor, squares_N3: Tensor, size: int = CROP) -> Tensor:
    """One square per picture, resampled bilinearly to [N, C, size, size]; edges are repeated."""
    height, width = pictures_NCHW.shape[-2:]
    x, y, side = squares_N3.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [side / width, zero, 2 * x / width - 1, zero, side / height, 2 * y / height - 1]
    theta = torch.stack(rows, -1).view(-1, 2, 3)
    shape = [len(theta), pictures_NCHW.shape[1], size, size]
    grid = F.affine_grid(theta, shape, align_corners=False)
    return F.grid_sample(pictures_NCHW, grid, padding_mode="border", align_corners=False)


def jitter(squares_N3: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Squares as an imperfect detector would give them: centre off by up to `amount` of the side,
    side off by a factor of up to 1 ± 1.5 `amount`."""
    noise = torch.rand(squares_N3.shape, generator=generator) * 2 - 1
    centre = squares_N3[:, :2] + noise[:, :2] * amount * squares_N3[:, 2:]
    return torch.cat([centre, squares_N3[:, 2:] * (1 + 1.5 * amount * noise[:, 2:])], -1)


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
