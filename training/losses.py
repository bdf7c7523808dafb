"""Losses of generator training, as pure functions of tensors.

Legend: B batch, C channels, F latent frames, H W latent height, width, S subjects, T pixel frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine import flow


def flow_matching(v_BCFHW: Tensor, target_BCFHW: Tensor, weight_BFHW: Tensor | None) -> Tensor:
    """Mean squared velocity error of each row, [B] fp32 (rectified flow, arXiv 2209.03003 eq. 1).

    `weight_BFHW` says where errors count more; it is scaled to a mean of 1 in each row.
    """
    error_BFHW = (v_BCFHW.float() - target_BCFHW.float()).square().mean(1)
    if weight_BFHW is not None:
        error_BFHW = error_BFHW * weight_BFHW / weight_BFHW.mean((1, 2, 3), keepdim=True)
    return error_BFHW.mean((1, 2, 3))


def by_time(loss_B: Tensor, t_B: Tensor) -> dict[str, Tensor]:
    """The loss near noise and near the clean latent apart: the two learn different things."""
    noisy = (t_B > 0.5).float()
    early = (loss_B * noisy).sum() / noisy.sum().clamp_min(1)
    late = (loss_B * (1 - noisy)).sum() / (1 - noisy).sum().clamp_min(1)
    return {"loss_noisy": early.detach(), "loss_clean": late.detach()}


def noised(x0_BCFHW: Tensor, shift: float, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """(x_t, t_B, velocity target), drawn from torch's global generator on the CPU."""
    generator = torch.default_generator
    t_B = flow.sample_t(len(x0_BCFHW), generator, mean=mean, shift=shift).to(x0_BCFHW.device)
    eps = torch.randn(x0_BCFHW.shape, generator=generator).to(x0_BCFHW.device)
    return flow.add_noise(x0_BCFHW, eps, t_B), t_B, flow.velocity_target(x0_BCFHW, eps)


def latent_boxes(boxes_BSTX: Tensor, num_frames: int) -> Tensor:
    """Means over the pixel frames that a latent frame covers: [B, S, T, X] -> [B, S, F, X].

    The first latent frame is one pixel frame; each later one covers (T - 1) / (F - 1) of them.
    """
    parts = [boxes_BSTX[:, :, :1]]
    if num_frames > 1:
        parts.append(boxes_BSTX[:, :, 1:].unflatten(2, (num_frames - 1, -1)).mean(3))
    return torch.cat(parts, 2)


def region_weight(
    boxes_BST4: Tensor,
    subject_mask_BS: Tensor,
    grid: tuple[int, int, int],
    factor: int,
    gain: float,
) -> Tensor:
    """`gain` in the latent cells that a subject's box touches, 1 elsewhere: [B, F, H, W].

    Args:
        boxes_BST4: x0, y0, x1, y1 in px for every pixel frame.
        grid: latent frames, height, width. factor: px per latent cell.
    """
    num_frames, height, width = grid
    left, top, right, bottom = (boxes_BST4 / factor).unbind(-1)
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    in_y = (y + 0.5 > top[..., None]) & (y - 0.5 < bottom[..., None])
    in_x = (x + 0.5 > left[..., None]) & (x - 0.5 < right[..., None])
    inside = in_y[..., :, None] & in_x[..., None, :] & subject_mask_BS[:, :, None, None, None]
    inside_BTHW = inside.any(1)
    # The first latent frame is one pixel frame; each later one covers `step` of them.
    step = (boxes_BST4.shape[2] - 1) // max(num_frames - 1, 1)
    parts = [inside_BTHW[:, :1]]
    if step:
        parts.append(inside_BTHW[:, 1:].unflatten(1, (-1, step)).any(2))
    return 1 + (gain - 1) * torch.cat(parts, dim=1).float()
