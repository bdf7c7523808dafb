"""Where somebody stands in latents, and who it is: two small convnets that identity guidance asks.

    latents of a frame ─ Locator ─▶ boxes ─ cut ─▶ crops ─ LatentReader ─▶ logits of groups

Both read latents, noisy guesses of them too, so that nothing is decoded while a video is made. They
share no weights and no pictures with the instruments that measure identity (`engine.identity`,
`training.world.oracle`). `training.latent_reader` trains the reader, which the generator's identity
loss asks as well; `training.locator` the locator. A model folder brings both in one file, or none.

Legend: N frames or crops, C latent channels, H W latents, V logits of all groups in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.checkpoint import load_strict
from engine.convnet import ResidualBlock
from engine.crops import squares
from engine.detector import STRIDE, maps_head
from engine.errors import CheckpointError
from engine.presets import Preset, ReaderConfig

FILE = "reader.safetensors"
CROP = 12
"""Side of the square that is read, latent cells."""
CONTEXT = 1.2
"""A crop's side as a multiple of its box's longer side."""


class LatentReader(nn.Module):
    """Crops of latents [N, C, 12, 12] -> logits [N, V] of all groups' values in a row."""

    def __init__(self, latent_dim: int, config: ReaderConfig) -> None:
        super().__init__()
        narrow, wide = config.widths
        self.trunk = nn.Sequential(
            nn.Conv2d(latent_dim, narrow, 3, 1, 1),
            ResidualBlock(narrow, narrow),
            ResidualBlock(narrow, wide, 2),
            ResidualBlock(wide, wide),
            nn.BatchNorm2d(wide),
            nn.SiLU(),
            nn.Conv2d(wide, config.squeezed, 1),
        )
        self.hidden = nn.Linear(config.squeezed * (CROP // 2) ** 2, 256)
        self.head = nn.Linear(256, sum(config.groups))

    def forward(self, crops_NCHW: Tensor) -> Tensor:
        crops_NCHW = crops_NCHW.contiguous(memory_format=torch.channels_last)
        return self.head(F.silu(self.hidden(self.trunk(crops_NCHW).flatten(1)))).float()


class Locator(nn.Module):
    """Latents of frames [N, C, H, W], sides even -> maps [N, 5, H, W] as `engine.detector`'s."""

    def __init__(self, latent_dim: int, config: ReaderConfig) -> None:
        super().__init__()
        fine, coarse = config.locator_widths
        self.stem = nn.Sequential(
            nn.Conv2d(latent_dim, fine, 3, 1, 1), ResidualBlock(fine, fine)
        )
        self.down = nn.Sequential(ResidualBlock(fine, coarse, 2), ResidualBlock(coarse, coarse))
        self.up = nn.Sequential(nn.Conv2d(coarse, fine, 1), nn.Upsample(scale_factor=2))
        self.join = nn.Sequential(ResidualBlock(fine, fine), *maps_head(fine))

    def forward(self, latents_NCHW: Tensor) -> Tensor:
        latents_NCHW = latents_NCHW.contiguous(memory_format=torch.channels_last)
        fine = self.stem(latents_NCHW)
        return self.join(fine + self.up(self.down(fine))).float()


class Readers(nn.Module):
    """What a model folder's file holds: `where` and `who`."""

    def __init__(self, latent_dim: int, config: ReaderConfig) -> None:
        super().__init__()
        self.config = config
        self.where = Locator(latent_dim, config)
        self.who = LatentReader(latent_dim, config)


def cells(boxes_NX: Tensor, factor: int) -> Tensor:
    """Squares [N, 3] around boxes (px), in latent cells of `factor` px."""
    return squares(boxes_NX, CONTEXT) / factor


def divergence(true_NV: Tensor, seen_NV: Tensor, groups: Sequence[int]) -> Tensor:
    """KL(true || seen) of two readings (logits), summed over the groups: [N] nats."""
    parts = zip(true_NV.split(list(groups), 1), seen_NV.split(list(groups), 1), strict=True)
    of_group = [
        F.kl_div(seen.log_softmax(1), true.log_softmax(1), reduction="none", log_target=True).sum(1)
        for true, seen in parts
    ]
    return torch.stack(of_group).sum(0)


def readers_of(folder: Path, preset: Preset, device: torch.device) -> Readers | None:
    """Of a verified model folder, in fp32, frozen; None for models that bring none.

    Raises CheckpointError: the file is another network's, or the preset has no place for one.
    """
    if preset.limits.max_identity_scale == 0:
        return None
    # A detector's cells are the latents', and the locator halves them once.
    fits = preset.vae.spatial_factor == STRIDE and preset.limits.size_multiple % (2 * STRIDE) == 0
    if preset.reader is None or preset.family == "vace" or not fits:  # VACE's frames are references
        raise CheckpointError(
            f"limits.max_identity_scale: must be 0, {preset.name} ({preset.family}) has no readers"
        )
    readers = Readers(preset.vae.z_dim, preset.reader)
    load_strict(readers, folder / FILE, FILE)
    return readers.to(device).eval().requires_grad_(False)
