"""Signed distances (body units, negative inside) of the characters' bodies, parts and patterns.

Legend: u right, v up, body radius 1; tensors of any one shape, usually [T, K, K].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ellipse(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    """Approximate signed distance to an ellipse: exact on it and for circles."""
    unit = torch.sqrt((u / a) ** 2 + (v / b) ** 2)
    slope = torch.sqrt((u / a**2) ** 2 + (v / b**2) ** 2).clamp_min(1e-4)
    return unit * (unit - 1) / slope


def box(u: Tensor, v: Tensor, a: float, b: float, corner: float = 0.0) -> Tensor:
    qu, qv = u.abs() - (a - corner), v.abs() - (b - corner)
    outside = torch.sqrt(qu.clamp_min(0) ** 2 + qv.clamp_min(0) ** 2)
    return outside + torch.maximum(qu, qv).clamp_max(0) - corner


def segment(u: Tensor, v: Tensor, ends: tuple[float, float, float, float], r: float) -> Tensor:
    au, av, bu, bv = ends
    du, dv = bu - au, bv - av
    along = (((u - au) * du + (v - av) * dv) / (du * du + dv * dv)).clamp(0, 1)
    return torch.sqrt((u - au - along * du) ** 2 + (v - av - along * dv) ** 2) - r


def polygon(u: Tensor, v: Tensor, corners: list[tuple[float, float]], r: float) -> Tensor:
    """Signed distance to a simple polygon (any turn), rounded outwards by `r`."""
    best = torch.full_like(u, 1e9)
    sign = torch.ones_like(u)
    for (au, av), (bu, bv) in zip(corners, corners[1:] + corners[:1], strict=True):
        best = torch.minimum(best, segment(u, v, (au, av, bu, bv), 0.0))
        straddles = (av > v) != (bv > v)
        crossing = au + (v - av) / ((bv - av) or 1e-9) * (bu - au)
        sign = torch.where(straddles & (u < crossing), -sign, sign)
    return best * sign - r


def _star(u: Tensor, v: Tensor) -> Tensor:
    corners = [
        (r * math.sin(i * math.pi / 5), r * math.cos(i * math.pi / 5))
        for i, r in ((i, 1.05 if i % 2 == 0 else 0.62) for i in range(10))
    ]
    return polygon(u, v, corners, 0.1)


def _drop(u: Tensor, v: Tensor) -> Tensor:
    taper = polygon(u, v, [(-0.7, 0.02), (0.0, 1.08), (0.7, 0.02)], 0.06)
    return torch.minimum(ellipse(u, v + 0.2, 0.82, 0.8), taper)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    w = u.abs()
    lobes = torch.sqrt((w - 0.45) ** 2 + (v - 0.35) ** 2) - 0.56
    point = polygon(u, v, [(-0.86, 0.1), (0.86, 0.1), (0.0, -0.95)], 0.06)
    return torch.minimum(lobes, point)


def _cloud(u: Tensor, v: Tensor) -> Tensor:
    puffs = [(-0.55, -0.25, 0.5), (0.55, -0.25, 0.5), (0.0, 0.35, 0.62), (0.0, -0.3, 0.6)]
    rounds = [torch.sqrt((u - a) ** 2 + (v - b) ** 2) - r for a, b, r in puffs]
    return torch.stack(rounds).amin(0)


SHAPES = {
    "ball": lambda u, v: ellipse(u, v, 0.95, 0.95),
    "cube": lambda u, v: box(u, v, 0.86, 0.86, 0.2),
    "triangle": lambda u, v: polygon(u, v, [(-0.85, -0.7), (0.85, -0.7), (0.0, 0.85)], 0.14),
    "star": _star,
    "egg": lambda u, v: ellipse(u, v, 0.68, 1.0),
    "drop": _drop,
    "heart": _heart,
    "cloud": _cloud,
}


def _wave(w: Tensor, period: float, width: float) -> Tensor:
    """Distance to bands of `width` repeating every `period`."""
    return (torch.remainder(w + period / 2, period) - period / 2).abs() - width / 2


def _dots(u: Tensor, v: Tensor) -> Tensor:
    row = torch.floor(v / 0.46)
    du = torch.remainder(u + 0.265 * torch.remainder(row, 2), 0.53) - 0.265
    dv = v - (row + 0.5) * 0.46
    return torch.sqrt(du * du + dv * dv) - 0.155


PATTERNS = {
    "stripes": lambda u, v: _wave(v, 0.5, 0.22),
    "bars": lambda u, v: _wave(u, 0.5, 0.22),
    "dots": _dots,
    "checks": lambda u, v: 0.25 * torch.sign(_wave(u, 0.9, 0.45) * _wave(v, 0.9, 0.45)),
    "two-tone": lambda u, v: v + 0.12,
    "belly": lambda u, v: ellipse(u, v + 0.55, 0.52, 0.42),
}
