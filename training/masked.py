"""Masked training: an update computes a share of the video's tokens, which costs that share.

As MaskDiT (arXiv 2306.09305), without its layers that fill in what was left out: characters' tokens
come first, and what is left out is background mostly, which is learned soon.

Legend: B batch, F H W latent frames, height, width, L tokens, K kept tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.loop import Around


@dataclass
class Kept:
    """The share of the tokens that is computed: all of them in the decay, as when it serves."""

    share: float

    def all_while(self, form: Around | None) -> Around | None:
        """`form`, with all tokens kept inside it."""
        if self.share == 1:
            return form

        @contextmanager
        def around(model: nn.Module) -> Iterator[None]:
            share, self.share = self.share, 1.0
            try:
                with form(model) if form is not None else nullcontext():
                    yield
            finally:
                self.share = share

        return around


def kept_tokens(weight_BFHW: Tensor, patch: tuple[int, int, int], share: float) -> Tensor:
    """Numbers of the tokens that an update computes, rising, [B, K]: a `share` of all. Those that
    touch a cell of more than the least weight come first, else chance decides (torch's global
    generator).
    """
    weight_BL = F.max_pool3d(weight_BFHW[:, None], patch, patch).flatten(1).cpu()
    first_BL = weight_BL > weight_BL.amin(1, keepdim=True)
    num = max(1, round(share * weight_BL.shape[1]))
    order_BL = torch.rand(weight_BL.shape) + first_BL.float()
    kept_BK: Tensor = order_BL.topk(num, 1).indices.sort(1).values
    return kept_BK.to(weight_BFHW.device)


def kept_cells(kept_BK: Tensor, grid: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """True in the latent cells [B, F, H, W] of these tokens. grid: latent frames, height, width."""
    tokens = [side // edge for side, edge in zip(grid, patch, strict=True)]
    seen_BL = torch.zeros(len(kept_BK), tokens[0] * tokens[1] * tokens[2], device=kept_BK.device)
    seen_BFHW = seen_BL.scatter(1, kept_BK, 1.0).unflatten(1, tokens) > 0
    for dim, edge in enumerate(patch, start=1):
        seen_BFHW = seen_BFHW.repeat_interleave(edge, dim)
    return seen_BFHW
