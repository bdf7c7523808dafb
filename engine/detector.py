"""The detector: where do characters stand in a frame?

Objects as points (CenterNet, Zhou et al. 2019, arXiv 1904.07850): a heatmap of centres and, at each
centre, the offset in the cell and the log size. A generated character may stand anywhere, so
measuring needs it. `training.detector` trains it.

Legend: N frames, H W pixels, h w cells of 4 pixels, K objects of a frame, S=4 box corners (pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.convnet import ResidualBlock, load
from engine.crops import CROP, cut, squares, to_unit

STRIDE = 4
MAX_OBJECTS = 6
THRESHOLD = 0.3


class Detector(nn.Module):
    """Frames [N, 3, H, W] in [-1, 1], H and W multiples of 16 -> maps [N, 5, H/4, W/4]: centre
    logit, offset x and y in cells, log width and log height in cells."""

    def __init__(self, widths: tuple[int, ...] = (64, 64, 96, 128)) -> None:
        super().__init__()
        a, b, c, d = widths
        # 4x4 pixels become channels at once: convolutions at full size would cost most of the time.
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(STRIDE),
            nn.Conv2d(48, a, 3, 1, 1),
            ResidualBlock(a, b),
            ResidualBlock(b, b),
        )
        self.down1 = nn.Sequential(ResidualBlock(b, c, 2), ResidualBlock(c, c))
        self.down2 = nn.Sequential(ResidualBlock(c, d, 2), ResidualBlock(d, d))
        self.up1 = nn.Sequential(nn.Conv2d(d, c, 1), nn.Upsample(scale_factor=2))
        self.join1 = ResidualBlock(c, c)
        self.up2 = nn.Sequential(nn.Conv2d(c, b, 1), nn.Upsample(scale_factor=2))
        self.join2 = ResidualBlock(b, b)
        self.head = maps_head(b)

    def forward(self, frames_NCHW: Tensor) -> Tensor:
        fine = self.stem(frames_NCHW)
        mid = self.down1(fine)
        mid = self.join1(mid + self.up1(self.down2(mid)))
        return self.head(self.join2(fine + self.up2(mid))).float()


def maps_head(width: int) -> nn.Sequential:
    """Features [N, width, h, w] -> maps [N, 5, h, w], see `Detector`."""
    out = nn.Conv2d(width, 5, 3, 1, 1)
    # A rare foreground: start at p = 0.02, or the first steps only unlearn the background.
    nn.init.constant_(out.bias, 0.0)  # type: ignore[arg-type]
    nn.init.constant_(out.bias[:1], -4.0)  # type: ignore[index]
    return nn.Sequential(nn.BatchNorm2d(width), nn.SiLU(), out)


@dataclass(frozen=True)
class Detections:
    """boxes_NKS [N, 6, 4] in pixels; score_NK [N, 6], best first, 0 where there is none."""

    boxes_NKS: Tensor
    score_NK: Tensor


def decode(maps_N5hw: Tensor, threshold: float = THRESHOLD) -> Detections:
    """Peaks of the heatmap (3x3 maxima above the threshold) with their boxes."""
    heat = maps_N5hw[:, :1].sigmoid()
    peak = heat * (F.max_pool2d(heat, 3, 1, 1) == heat) * (heat >= threshold)
    score, flat = peak.flatten(1).topk(MAX_OBJECTS)
    width = maps_N5hw.shape[-1]
    cell = torch.stack([flat % width, flat // width], -1)
    maps = maps_N5hw[:, 1:].flatten(2).gather(2, flat[:, None].expand(-1, 4, -1)).transpose(1, 2)
    centre = (cell + 0.5 + maps[..., :2]) * STRIDE
    half = maps[..., 2:].clamp(-2, 4).exp() * STRIDE / 2
    return Detections(torch.cat([centre - half, centre + half], -1), score)


@torch.no_grad()
def detect(net: Detector, frames_NHWC: Tensor, threshold: float = THRESHOLD) -> Detections:
    """uint8 frames [N, H, W, 3] -> who stands where."""
    frames = to_unit(frames_NHWC).contiguous(memory_format=torch.channels_last)
    return decode(net(frames), threshold)


@dataclass(frozen=True)
class Found:
    """The characters of a clip's frames. boxes_TDK [T, D, 4] in pixels; real_TD bool, False for
    padding; crops_NCHW of the real ones, frame by frame, channels last."""

    boxes_TDK: Tensor
    real_TD: Tensor
    crops_NCHW: Tensor


@torch.no_grad()
def find(net: Detector, frames_THWC: Tensor, most: int = MAX_OBJECTS) -> Found:
    """uint8 frames of a clip -> at most `most` characters of each, best first, cut out."""
    found = detect(net, frames_THWC)
    real_TD = found.score_NK[:, :most] > 0
    widest = max(1, int(real_TD.sum(1).max()))
    real_TD, boxes_TDK = real_TD[:, :widest], found.boxes_NKS[:, :widest]
    frame_N = real_TD.nonzero()[:, 0]
    crops = torch.zeros(0, 3, CROP, CROP)
    if len(frame_N):
        crops = cut(to_unit(frames_THWC)[frame_N], squares(boxes_TDK[real_TD]))
    return Found(boxes_TDK, real_TD, crops.contiguous(memory_format=torch.channels_last))


def load_detector(path: Path) -> Detector:
    """The detector of a file written by the recipe, ready to measure."""
    return load(Detector(), path)
