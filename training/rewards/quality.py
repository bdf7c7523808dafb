"""How clean frames look, without any model: sharp where there are edges, calm where there are none.

    sharpness   how much of the detail a blur takes away: little is left to take where all is
                blurred already (Crete et al., "The Blur Effect", 2007)
    grain       standard deviation of noise, from a filter that edges and slopes do not pass
                (Immerkaer, "Fast noise variance estimation", 1996), its median over the frame, so
                that what is drawn does not count as long as most of the frame is plain
    quality     sharpness, as a share of that of true clips, times exp(-grain / GRAIN)

It is the miniature's stand-in for a model of aesthetics, for drawn pictures: photographs have grain
that nobody minds.

Legend: N frames, B clips, F frames of one, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WIDTH = 9  # of the blur, pixels, as in the paper
SHARP = 0.77
"""What true pictures of the drawn world have: 95 of 100 held-out stills at 96x64 have .77 to .85 or
more; what reaches it is sharp enough."""
GRAIN = 4.0  # of 255: what divides the quality by e
_NORMAL = 0.6745  # median of |x| of a standard normal
_STENCIL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6


def quality(frames_BFHWC: Tensor) -> Tensor:
    """uint8 clips -> fp64 [B] in [0, 1], the mean over a clip's frames."""
    grey_NHW = _grey(frames_BFHWC.flatten(0, 1))
    sharp_N = (sharpness(grey_NHW) / SHARP).clamp(max=1)
    value_N = sharp_N * (-grain(grey_NHW) / GRAIN).exp()
    return value_N.double().unflatten(0, frames_BFHWC.shape[:2]).mean(1)


def sharpness(grey_NHW: Tensor) -> Tensor:
    """1 - the paper's blur, [N] in [0, 1]; 0 where there is no detail at all."""
    values = []
    for dim in (1, 2):
        weight = torch.full((1, 1, WIDTH), 1 / WIDTH)
        kernel = weight[..., None] if dim == 1 else weight[:, :, None]
        side = [WIDTH // 2] * 2
        padded = F.pad(grey_NHW[:, None], (0, 0, *side) if dim == 1 else (*side, 0, 0), "reflect")
        soft_NHW = F.conv2d(padded, kernel)[:, 0]
        detail = grey_NHW.diff(dim=dim).abs()
        lost = (detail - soft_NHW.diff(dim=dim).abs()).clamp_min(0)
        values.append(lost.sum((1, 2)) / detail.sum((1, 2)).clamp_min(1e-6))
    return torch.minimum(*values)


def grain(grey_NHW: Tensor) -> Tensor:
    """Standard deviation of the noise of each frame, [N] on the scale of 255."""
    passed = F.conv2d(grey_NHW[:, None], _STENCIL[None, None]).abs().flatten(1)
    return passed.median(1).values / _NORMAL


def _grey(frames_NHWC: Tensor) -> Tensor:
    """Luma of Rec. 601, 0 to 255."""
    return frames_NHWC.float() @ torch.tensor([0.299, 0.587, 0.114])
