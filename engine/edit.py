"""Editing: a video that exists as the start of a new one, all of it or inside a mask.

    frames ─ VAE ─▶ x0 ─ noise to the time where the run enters ─▶ denoised with the new prompt

The less `strength`, the later the run enters and the more stays (SDEdit, arXiv 2108.01073; the
number of steps as in diffusers' WanVideoToVideoPipeline). Outside of a mask the velocity points at
the known latents, so that they walk their own straight path beside the new ones and arrive
unchanged, with any solver. The VAE codes what stays too: it is the old video up to the codec.

Legend: C channels, F latent frames, T frames, H W height, width (pixels or latent cells).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.errors import SpecError
from engine.presets import Limits, VAEConfig
from engine.sample import Source
from engine.spec import Spec
from engine.vae import VAE, to_pixels
from engine.video import Video

GRID = 4  # a video has 4k + 1 frames


@dataclass(frozen=True, eq=False)
class Edit:
    """What is edited. strength: in (0, 1], 1 keeps nothing but what the mask protects.

    mask: bool [H, W] or [T, H, W], True where the video is made anew; None is everywhere.
    """

    video: Video
    strength: float = 0.6
    mask: NDArray[np.bool_] | None = None

    def validate(self, spec: Spec) -> None:
        """Raises SpecError, naming what does not fit the request."""
        if not (math.isfinite(self.strength) and 0 < self.strength <= 1):
            raise SpecError("strength", f"must be above 0 and at most 1, got {self.strength:g}")
        wanted = (spec.num_frames, spec.height, spec.width)
        if self.video.frames.shape[:3] != wanted:
            raise SpecError(
                "video", f"has frames, height, width {self.video.frames.shape[:3]}, not {wanted}"
            )
        if self.mask is not None and self.mask.shape not in (wanted, wanted[1:]):
            raise SpecError("mask", f"has shape {self.mask.shape}, must be {wanted[1:]}")
        if self.mask is not None and not self.mask.any():
            raise SpecError("mask", "marks nothing: True is where the video is made anew")

    def pixels(self) -> tuple[Tensor, Tensor | None]:
        """[3, T, H, W] in [-1, 1], and the mask [T, H, W] as 0 and 1, or None."""
        pixels = to_pixels(torch.from_numpy(self.video.frames)[None])[0]
        if self.mask is None:
            return pixels, None
        mask = torch.from_numpy(np.ascontiguousarray(self.mask)).float()
        return pixels, mask.expand(len(self.video.frames), -1, -1)

    def source(self, vae: VAE, steps: int) -> Source:
        """Latents and mask [1, …], and the step at which the run enters; fp32, on the CPU."""
        x0 = vae.encode(self.pixels()[0][None])
        mask = None if self.mask is None else latent_mask(self.mask, len(self.video.frames), vae)
        return Source(x0, entry(self.strength, steps), mask)


def entry(strength: float, steps: int) -> int:
    """The step at which a run of this strength enters; at least one is left."""
    # The grain lets .7 of 10 be 7: .7 * 10 is a little less.
    return min(steps - 1, steps - int(strength * steps + 1e-9))


def latent_mask(mask: NDArray[np.bool_], num_frames: int, vae: VAE) -> Tensor:
    """[1, 1, F, H, W] fp32: 1 in every latent cell of which any pixel is to be made anew."""
    config: VAEConfig = vae.config
    whole = torch.from_numpy(np.ascontiguousarray(mask)).float().expand(num_frames, -1, -1)
    cells_THW = F.max_pool2d(whole[:, None], config.spatial_factor)[:, 0]
    later = cells_THW[1:].unflatten(0, (-1, config.temporal_factor)).amax(1)
    return torch.cat([cells_THW[:1], later])[None, None]


def length(video: Video, limits: Limits) -> int:
    """How many of its frames the model can take: as many as possible, from the first.

    Raises:
        SpecError: it is shorter than the shortest that the model makes.
    """
    num = min(len(video.frames), limits.max_frames)
    num -= (num - 1) % GRID
    if num < limits.min_frames:
        raise SpecError(
            "video", f"has {len(video.frames)} frames, at least {limits.min_frames} are needed"
        )
    return num


def fitted(video: Video, width: int, height: int, num_frames: int) -> Video:
    """The first frames of the video at width x height px, stretched where the shape differs.

    Raises:
        SpecError: it has fewer frames.
    """
    if len(video.frames) < num_frames:
        raise SpecError("video", f"has {len(video.frames)} frames, {num_frames} are asked for")
    frames = video.frames[:num_frames]
    if video.size != (width, height):
        resized = [Image.fromarray(frame).resize((width, height)) for frame in frames]
        frames = np.stack([np.array(frame) for frame in resized])
    return Video(frames, video.fps)
