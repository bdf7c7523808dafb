"""The small residual convnet under every measuring instrument, and how its file is opened.

Legend: N pictures, C channels, H W pixels.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.checkpoint import load_strict
from engine.errors import CheckpointError

Net = TypeVar("Net", bound=nn.Module)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, normalised over the batch first, beside a (projected) identity."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        same = cin == cout and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_NCHW)))
        return self.skip(x_NCHW) + self.conv2(F.silu(self.norm2(h)))


class Trunk(nn.Sequential):
    """[N, 3, 48, 48] -> [N, widths[-1], 6, 6]: 2x2 pixels become channels, then one halving per
    further width."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, 1, 1)]
        layers.append(ResidualBlock(widths[0], widths[0]))
        for cin, cout in pairwise(widths):
            layers += [ResidualBlock(cin, cout, 2), ResidualBlock(cout, cout)]
        super().__init__(*layers, nn.BatchNorm2d(widths[-1]), nn.SiLU())


def load(net: Net, path: Path, recipe: str = "miniature_identity") -> Net:
    """Fills `net` from `path`, strictly; returns it in fp32, ready to infer (channels last).

    Raises:
        CheckpointError: the file is missing (then `recipe` is named), or of another network.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; `troupe train {recipe}` makes it")
    load_strict(net, path, str(path))
    net.eval().requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]
