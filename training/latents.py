"""The basis of the codec's latents: an error in them counts about as much as it does in pixels.

A codec trained on pixels leaves the axes of its latents as chance made them. Here three of sixteen
directions moved no pixel at all, and one held half of the pixels' energy; but rectified flow adds
equal noise to all of them and counts equal errors in all, so most of the generator's effort went
where nobody sees it. The cure is linear: with the decoder's mean metric

    M = E[J^T J],  J = d pixels / d z   (of one latent cell, over cells and clips)

the latents become A (z - mean), A = s M^(1/2), for which |A dz|^2 is what dz costs in pixels; s
brings the mean variance of a channel to 1. Both 1x1x1 convolutions around the latents can hold A
and its inverse, so the codec's code and its pictures stay what they were (docs/decisions.md).

Legend: B clips, C latent channels, F H W latents, T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

FLOOR = 0.02  # of the largest eigenvalue of M: A must have an inverse


def pixel_metric(
    decode: Callable[[Tensor], Tensor], z_BCFHW: Tensor, probes: int = 2, seed: int = 0
) -> Tensor:
    """The sum of J^T J over the cells of `z`, [C, C].

    E[g g^T] with g = J^T r is J^T J for white r, so a few backward passes measure it.
    """
    generator = torch.Generator().manual_seed(seed)
    z_BCFHW = z_BCFHW.detach().requires_grad_(True)
    metric_CC = z_BCFHW.new_zeros(z_BCFHW.shape[1], z_BCFHW.shape[1])
    with torch.enable_grad():
        y = decode(z_BCFHW)
        for _ in range(probes):
            noise = torch.randn(y.shape, generator=generator).to(y)
            (slope,) = torch.autograd.grad(y, z_BCFHW, noise, retain_graph=True)
            rows = slope.movedim(1, -1).flatten(0, -2)
            metric_CC += rows.T @ rows
    return metric_CC / probes


def basis(metric_CC: Tensor, covariance_CC: Tensor) -> Tensor:
    """A, symmetric [C, C] fp64: the root of the metric, such that A z has mean variance 1."""
    values, vectors = torch.linalg.eigh(metric_CC.double())
    root = (vectors * values.clamp_min(FLOOR * values.max()).sqrt()) @ vectors.T
    spread = torch.trace(root @ covariance_CC.double() @ root)
    return root * (len(root) / spread).sqrt()


def moments(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean [C] and covariance [C, C] over all cells of latents [B, C, F, H, W], fp64."""
    rows = torch.cat([z.movedim(1, -1).flatten(0, -2).double() for z in latents])
    return rows.mean(0), torch.cov(rows.T)


def fold(tensors: dict[str, Tensor], mean_C: Tensor, basis_CC: Tensor) -> dict[str, Tensor]:
    """The codec's tensors with latents basis (z - mean): quant_conv and post_quant_conv in fp32.

    Decoding what was encoded gives the same pixels as before.
    """
    num, mean, a = len(basis_CC), mean_C.double(), basis_CC.double()
    weight, bias = tensors["quant_conv.weight"].double(), tensors["quant_conv.bias"].double()
    # Its outputs are the posterior's means, then its logarithms of variances: those stay.
    weight = torch.cat([torch.einsum("ij,jkfhw->ikfhw", a, weight[:num]), weight[num:]])
    bias = torch.cat([a @ (bias[:num] - mean), bias[num:]])
    back, start = tensors["post_quant_conv.weight"].double(), tensors["post_quant_conv.bias"]
    start = start.double() + torch.einsum("ijfhw,j->i", back, mean)
    back = torch.einsum("ijfhw,jk->ikfhw", back, torch.linalg.inv(a))
    folded = {
        "quant_conv.weight": weight,
        "quant_conv.bias": bias,
        "post_quant_conv.weight": back,
        "post_quant_conv.bias": start,
    }
    return tensors | {name: tensor.float().contiguous() for name, tensor in folded.items()}
