"""The identity encoder: a crop of one character -> a unit vector that says who it is.

It measures only: the generator never sees its gradient. `training.identity` trains it.

Legend: N crops, H W pixels, T frames, D detections of a frame, E embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.convnet import Trunk, load
from engine.crops import CROP, cut, to_unit, whole_picture
from engine.detector import Found

WIDTHS = (48, 96, 192)
DIM = 128


class IdentityEncoder(nn.Module):
    """Crops [N, 3, 48, 48] in [-1, 1] -> unit vectors [N, 128]; the cosine of two of them is the
    similarity of two characters."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, dim: int = DIM) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        # Flatten, not average: where a colour sits (hat, body) is part of who it is.
        self.squeeze = nn.Conv2d(widths[-1], 48, 1)
        self.head = nn.Linear(48 * 36, dim)

    def forward(self, crops_NCHW: Tensor) -> Tensor:
        h = self.squeeze(self.trunk(crops_NCHW)).flatten(1)
        return F.normalize(self.head(h).float(), dim=-1)


def reference_crops(references: Tensor) -> Tensor:
    """Reference pictures uint8 [..., 64, 64, 3] -> crops [N, 3, 48, 48]: the whole picture."""
    pictures = to_unit(references.flatten(0, -4))
    return cut(pictures, whole_picture(pictures), CROP)


@torch.no_grad()
def embed(encoder: IdentityEncoder, found: Found) -> Tensor:
    """Of every character that was found its unit vector, zero for padding: [T, D, 128]."""
    unit_TDE = torch.zeros(*found.real_TD.shape, DIM)
    if len(found.crops_NCHW):  # torch's PixelUnshuffle lets an empty batch through as it is
        unit_TDE[found.real_TD] = encoder(found.crops_NCHW)
    return unit_TDE


def load_identity(path: Path) -> IdentityEncoder:
    """The encoder of a file written by `run`, ready to measure."""
    return load(IdentityEncoder(), path)
