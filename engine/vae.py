"""The Wan VAE behind a small door: frames to normalised latents and back.

Legend: B batch, C channels, T frames, F latent frames, H W height, width (pixels or latent cells).

The normalisation stands here and nowhere else: z = (posterior mean - mean) / std, per channel, as
in Wan2.1 `wan/modules/vae.py` (`WanVAE.encode`, which uses the posterior's mean, never a sample).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from engine import vae_stream
from engine.errors import CheckpointError
from engine.presets import VAEConfig
from engine.weights import CPU, fill, opened, without_contents

STATISTICS = ("latents_mean", "latents_std")


def build_vae(config: VAEConfig) -> Any:
    """diffusers' AutoencoderKLWan (a class without types) with fresh weights."""
    numbers = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    build: Any = AutoencoderKLWan
    return build(
        **numbers,
        scale_factor_spatial=config.spatial_factor,
        scale_factor_temporal=config.temporal_factor,
        latents_mean=[0.0] * config.z_dim,
        latents_std=[1.0] * config.z_dim,
    )


class VAE:
    """Encoder and decoder with their statistics. Keeps nothing of any clip.

    Both take tensors on any device. max_cells: the most latent cells that a tile of the decoder
    reads, see `engine.vae_stream`; 0 is no limit, and no tiles.
    """

    def __init__(
        self, model: Any, mean_C: Tensor, std_C: Tensor, config: VAEConfig, max_cells: int = 0
    ) -> None:
        assert mean_C.shape == std_C.shape == (config.z_dim,)
        self.model = model.eval().requires_grad_(False)
        self.mean = mean_C.float().view(-1, 1, 1, 1)
        self.std = std_C.float().view(-1, 1, 1, 1)
        self.config = config
        self.max_cells = max_cells
        self._encoding = threading.Lock()

    def check_tiles(self, height: int, width: int) -> None:
        """Raises BackendError when no tile of a frame of so many latent cells is small enough."""
        vae_stream.grid(height, width, vae_stream.reach(self.config), self.max_cells)

    @classmethod
    def from_files(
        cls,
        weights: Path,
        config: VAEConfig,
        max_cells: int = 0,
        device: torch.device = CPU,
    ) -> VAE:
        """Reads AutoencoderKLWan's weights and, beside them, `latents_mean` and `latents_std`.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape.
        """
        with opened(weights) as file:
            tensors = {name: file.get_tensor(name) for name in set(STATISTICS) & set(file.keys())}
        mean, std = (_statistic(tensors, name, config.z_dim, weights) for name in STATISTICS)
        with without_contents():
            model = build_vae(config)
        fill(model, weights, device, beside=STATISTICS)
        return cls(model, mean.to(device), std.to(device), config, max_cells)

    def tensors(self) -> dict[str, Tensor]:
        """What `from_files` reads."""
        return {
            **self.model.state_dict(),
            "latents_mean": self.mean.flatten(),
            "latents_std": self.std.flatten(),
        }

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor) -> Tensor:
        """Pixels in [-1, 1], T = 1 + 4n -> normalised latents [B, z, 1 + n, H / s, W / s], fp32,
        on the frames' own device."""
        num_frames = frames_BCTHW.shape[2]
        assert num_frames % self.config.temporal_factor == 1, num_frames
        frames = frames_BCTHW.to(self.mean.device, self.model.dtype)
        with self._encoding:  # the encoder keeps what it has seen of a clip on itself
            mean: Tensor = self.model.encode(frames).latent_dist.mode().float()
        return ((mean - self.mean) / self.std).to(frames_BCTHW.device)

    @torch.no_grad()
    def stream(self, z_BCFHW: Tensor) -> Iterator[Tensor]:
        """Normalised latents -> pixels in [-1, 1], fp32, [B, 3, 1, H * s, W * s] and then four
        frames at a time, on the VAE's device. Its memory is its own: streams may be read in turns.

        Raises:
            BackendError: `max_cells` is less than the smallest tile has.
        """

        def raw(z_BC1HW: Tensor) -> Tensor:
            z = z_BC1HW.to(self.mean.device).float()
            return (z * self.std + self.mean).to(self.model.dtype)

        for pixels in vae_stream.stream(self.model, z_BCFHW, raw, self.config, self.max_cells):
            yield pixels.float()

    def decode(self, z_BCFHW: Tensor) -> Tensor:
        """Normalised latents -> pixels in [-1, 1], [B, 3, 1 + 4 (F - 1), H * s, W * s], fp32."""
        return torch.cat(list(self.stream(z_BCFHW)), dim=2)


def to_pixels(frames_BTHWC: Tensor) -> Tensor:
    """uint8 frames [B, T, H, W, 3] -> [-1, 1] as [B, 3, T, H, W], fp32."""
    return frames_BTHWC.movedim(-1, 1).float() / 127.5 - 1


def to_frames(pixels_BCTHW: Tensor) -> Tensor:
    """[-1, 1] -> uint8 frames [B, T, H, W, 3], rounded."""
    scaled = ((pixels_BCTHW.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).movedim(1, -1).contiguous()


def _statistic(tensors: Mapping[str, Tensor], name: str, z_dim: int, weights: Path) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{weights.name} lacks {name}")
    value = tensors[name].float()
    if value.shape != (z_dim,) or not bool(value.isfinite().all()):
        raise CheckpointError(f"{weights.name}: {name} must be {z_dim} finite numbers")
    if name == "latents_std" and not bool((value > 0).all()):
        raise CheckpointError(f"{weights.name}: latents_std must be positive")
    return value
