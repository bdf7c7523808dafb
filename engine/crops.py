"""Boxes to crops of characters, as differentiable tensor code.

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


def whole_picture(pictures_NCHW: Tensor) -> Tensor:
    """The square [N, 3] around all of each picture, or of its latents, in their cells."""
    height, width = pictures_NCHW.shape[-2:]
    square = torch.tensor([width / 2, height / 2, float(max(height, width))])
    return square.to(pictures_NCHW.device).expand(len(pictures_NCHW), 3)


def shaken(squares_N3: Tensor, noise_N3: Tensor, amount: float) -> Tensor:
    """Squares with the centre off by up to `amount` of the side and the side by a factor of up to
    1 ± 1.5 `amount`. noise_N3: how far, in [-1, 1]; one row serves all."""
    side_N1 = squares_N3[:, 2:]
    centre_N2 = squares_N3[:, :2] + noise_N3[:, :2] * amount * side_N1
    return torch.cat([centre_N2, side_N1 * (1 + 1.5 * amount * noise_N3[:, 2:])], -1)


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
