"""VACE: Wan with context blocks, which read a masked video and references beside the noisy one.

    context_BCFHW = [ what stays | what is made anew | mask ]    C = 2 z + s * s
        references stand in front in time, with nothing to be made anew and a mask of zeros
    tokens ─ first context block + x ─▶ context block ─▶ … ; each gives a hint that is added behind
    the Wan block it stands beside

Names and order are those of Wan-Video/Wan2.1 `wan/modules/vace_model.py`; the context is made as in
ali-vilab/VACE `vace/models/wan/wan_vace.py` (vace_encode_frames, vace_encode_masks, vace_latent).
References keep their order there; diffusers' pipeline turns it round.

The mask is 1 where something is made anew: the other way round than a mask of what is kept.
The context's tokens and the text's K and V in the context blocks do not change from step to step.

Legend: B batch, C channels, F latent frames, T frames, H W, L video tokens, M model dim,
S subjects, s px per latent cell, z latent channels.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.dit import Block, Context, WanDiT, projected
from engine.presets import DiTConfig
from engine.vae import VAE


class VaceBlock(Block):
    """A Wan block on the context. The first takes x in; each projects its result to a hint."""

    def __init__(self, config: DiTConfig, first: bool) -> None:
        super().__init__(config)
        if first:
            self.before_proj = nn.Linear(config.dim, config.dim)
        self.after_proj = nn.Linear(config.dim, config.dim)


class VaceDiT(WanDiT):
    """Wan with VACE's context blocks. A condition without a context is plain Wan."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        assert config.vace_layers[:1] == (0,) and config.vace_layers[-1] < config.num_layers
        self.vace_patch_embedding = nn.Conv3d(
            config.vace_in_dim, config.dim, config.patch, stride=config.patch
        )
        self.vace_blocks = nn.ModuleList(
            VaceBlock(config, first=number == 0) for number in range(len(config.vace_layers))
        )
        for name, parameter in self.vace_blocks.named_parameters():
            if "before_proj" in name or "after_proj" in name:
                nn.init.zeros_(parameter)

    def context(self, context_BCFHW: Tensor, text_BTM: Tensor) -> Context:
        """All of the context that does not change from step to step, computed once."""
        dtype = self.vace_patch_embedding.weight.dtype
        tokens = self.vace_patch_embedding(context_BCFHW.to(dtype)).flatten(2).transpose(1, 2)
        text = projected(self.vace_blocks, self.text_features(text_BTM))
        return Context(tokens.float().contiguous(), text)

    def hints(
        self,
        x_BLM: Tensor,
        e_B6M: Tensor,
        rope: tuple[Tensor, Tensor],
        context: Context | None,
    ) -> dict[int, Tensor]:
        """The hint behind each of the blocks `vace_layers`, [B, L, M] fp32."""
        if context is None:
            return {}
        c_BLM, found = context.tokens_BLM, {}
        if self.split is not None:
            c_BLM = self.split.part(c_BLM)
        blocks = cast(list[VaceBlock], self.vace_blocks)
        for index, block, text in zip(self.config.vace_layers, blocks, context.text, strict=True):
            if index == 0:
                c_BLM = block.before_proj(c_BLM.to(block.after_proj.weight.dtype)).float() + x_BLM
            c_BLM = block(c_BLM, e_B6M, rope, None, text, None, None)
            found[index] = block.after_proj(c_BLM.to(block.after_proj.weight.dtype)).float()
        return found


def build_dit(config: DiTConfig) -> WanDiT:
    """The transformer that a configuration describes."""
    return VaceDiT(config) if config.vace_layers else WanDiT(config)


def context_latents(
    vae: VAE,
    refs_SCHW: Tensor,
    pixels_CTHW: Tensor | None,
    mask_THW: Tensor | None,
    shape: tuple[int, int, int],
) -> Tensor:
    """The context of one request, [C, S + F, H, W] fp32.

    Args:
        refs_SCHW: latents of the references. pixels_CTHW: the known video in [-1, 1], or None.
        mask_THW: 1 where it is made anew; None is everywhere. shape: T, H, W in px.
    """
    if mask_THW is None:
        mask_THW = torch.ones(shape)
    if pixels_CTHW is None:
        pixels_CTHW = torch.zeros(3, *shape)
    stays, anew = pixels_CTHW * (1 - mask_THW), pixels_CTHW * mask_THW
    video = torch.cat([vae.encode(part[None])[0] for part in (stays, anew)])
    refs_CSHW = refs_SCHW.transpose(0, 1)
    before = torch.cat([refs_CSHW, torch.zeros_like(refs_CSHW)])
    mask = cell_masks(mask_THW, video.shape[1], vae.config.spatial_factor)
    mask = torch.cat([mask.new_zeros(len(mask), len(refs_SCHW), *mask.shape[2:]), mask], dim=1)
    return torch.cat([torch.cat([before, video], dim=1), mask])


def cell_masks(mask_THW: Tensor, num_frames: int, factor: int) -> Tensor:
    """Every pixel of a latent cell as a channel: [factor * factor, F, H, W].

    Frames are picked as upstream does ("nearest-exact"), not merged.
    """
    height, width = (side // factor for side in mask_THW.shape[1:])
    cells = mask_THW.unflatten(2, (width, factor)).unflatten(1, (height, factor))
    cells = cells.permute(2, 4, 0, 1, 3).flatten(0, 1)
    picked: Tensor = F.interpolate(cells[None], (num_frames, height, width), mode="nearest-exact")
    return picked[0]
