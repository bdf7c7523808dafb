"""Eight places in three lights, painted with a few distance functions, varied by seed.

Legend: H W frame pixels; pictures are float [3, H, W] in [0, 1].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LIGHT_TINT = ((1.0, 1.0, 1.0), (1.05, 0.80, 0.68), (0.36, 0.40, 0.62))
_SKY = ((0.55, 0.80, 0.98), (0.86, 0.94, 1.0))


def paint_background(background: int, light: int, seed: int, height: int, width: int) -> Tensor:
    """The empty stage of a scene; indices as in scene.BACKGROUNDS and scene.LIGHTS."""
    rng = np.random.default_rng((seed, 3))
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / height)[None].expand(height, width)
    px = float(height)
    picture = _PAINTERS[background](x, y, px, rng)
    tint = torch.tensor(_LIGHT_TINT[light])[:, None, None]
    if light == 1 and background < 6:
        glow = torch.tensor((1.0, 0.62, 0.35))[:, None, None]
        picture = picture + (glow - picture) * (0.35 * (1 - (y - 0.45).abs() * 2).clamp(0, 1))
    return (picture * tint).clamp(0, 1)


def _rgb(*values: float) -> Tensor:
    return torch.tensor(values)[:, None, None]


def _grade(y: Tensor, top: tuple[float, ...], bottom: tuple[float, ...]) -> Tensor:
    return _rgb(*top) + (_rgb(*bottom) - _rgb(*top)) * y


def _over(picture: Tensor, distance: Tensor, px: float, color: Tensor) -> Tensor:
    return picture + (color - picture) * (0.5 - distance * px).clamp(0, 1)


def _disc(x: Tensor, y: Tensor, cx: float, cy: float, r: float, flat: float = 1.0) -> Tensor:
    return torch.sqrt((x - cx) ** 2 + ((y - cy) / flat) ** 2) - r


def _sun_and_clouds(picture: Tensor, x: Tensor, y: Tensor, px: float,
                    rng: np.random.Generator) -> Tensor:
    sun = _disc(x, y, rng.uniform(0.1, 1.4), rng.uniform(0.08, 0.2), 0.07)
    picture = _over(picture, sun, px, _rgb(1.0, 0.95, 0.70))
    for _ in range(2):
        cx, cy = rng.uniform(0, 1.5), rng.uniform(0.1, 0.28)
        for dx, r in ((-0.09, 0.05), (0.0, 0.075), (0.09, 0.05)):
            picture = _over(picture, _disc(x, y, cx + dx, cy, r, 0.7), px, _rgb(0.97, 0.98, 1.0))
    return picture


def _hill(x: Tensor, y: Tensor, level: float, swing: float, rng: np.random.Generator) -> Tensor:
    return level + swing * torch.sin(x * rng.uniform(3, 6) + rng.uniform(0, 6.28)) - y


def _meadow(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _sun_and_clouds(_grade(y, *_SKY), x, y, px, rng)
    picture = _over(picture, _hill(x, y, 0.55, 0.05, rng), px, _rgb(0.55, 0.80, 0.42))
    return _over(picture, _hill(x, y, 0.68, 0.03, rng), px, _rgb(0.40, 0.70, 0.28))


def _beach(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _sun_and_clouds(_grade(y, *_SKY), x, y, px, rng)
    picture = _over(picture, 0.45 - y, px, _rgb(0.16, 0.48, 0.72))
    return _over(picture, _hill(x, y, 0.70, 0.02, rng), px, _rgb(0.94, 0.84, 0.60))


def _desert(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _grade(y, (0.98, 0.80, 0.52), (1.0, 0.93, 0.76))
    picture = _over(picture, _disc(x, y, rng.uniform(0.2, 1.3), 0.18, 0.1), px, _rgb(1.0, 0.6, 0.3))
    picture = _over(picture, _hill(x, y, 0.56, 0.06, rng), px, _rgb(0.86, 0.58, 0.34))
    return _over(picture, _hill(x, y, 0.70, 0.04, rng), px, _rgb(0.93, 0.70, 0.42))


def _forest(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _grade(y, (0.62, 0.80, 0.70), (0.45, 0.65, 0.50))
    for cx in np.arange(0.08, 1.6, 0.25) + rng.uniform(-0.06, 0.06, 7):
        picture = _over(picture, (x - cx).abs() - 0.035, px, _rgb(0.30, 0.22, 0.16))
        crown = _disc(x, y, cx, rng.uniform(0.12, 0.3), rng.uniform(0.15, 0.2))
        picture = _over(picture, crown, px, _rgb(0.10, rng.uniform(0.32, 0.42), 0.18))
    return _over(picture, _hill(x, y, 0.72, 0.02, rng), px, _rgb(0.24, 0.36, 0.16))


def _snow(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _grade(y, (0.62, 0.74, 0.88), (0.84, 0.90, 0.96))
    for cx in rng.uniform(0.1, 1.4, 2):
        peak = torch.maximum((x - cx).abs() * 1.1 + 0.24 - y, y - 0.7)
        picture = _over(picture, peak, px, _rgb(0.56, 0.64, 0.76))
    picture = _over(picture, _hill(x, y, 0.66, 0.03, rng), px, _rgb(0.95, 0.97, 1.0))
    for cx, cy in rng.uniform(0, 1, (14, 2)) * (1.5, 0.65):
        picture = _over(picture, _disc(x, y, cx, cy, 0.012), px, _rgb(1.0, 1.0, 1.0))
    return picture


def _street(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    picture = _grade(y, (0.70, 0.82, 0.92), (0.90, 0.92, 0.94))
    for cx in np.arange(0.1, 1.6, 0.3):
        wall = torch.maximum((x - cx).abs() - 0.13, rng.uniform(0.1, 0.3) - y)
        tone = rng.uniform(0.4, 0.68)
        picture = _over(picture, wall, px, _rgb(tone, tone * 0.86, tone * 0.82))
        for wy in (0.36, 0.5):
            pane = torch.maximum(((x - cx).abs() - 0.06).abs() - 0.025, (y - wy).abs() - 0.035)
            picture = _over(picture, pane, px, _rgb(0.95, 0.88, 0.56))
    picture = _over(picture, 0.66 - y, px, _rgb(0.72, 0.71, 0.70))
    return _over(picture, 0.74 - y, px, _rgb(0.36, 0.37, 0.40))


def _room(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    tone = torch.tensor(rng.uniform(-0.06, 0.06, 3), dtype=torch.float32)[:, None, None]
    picture = _grade(y, (0.93, 0.87, 0.80), (0.88, 0.80, 0.72)) + tone
    cx = rng.uniform(0.25, 1.25)
    frame = torch.maximum((x - cx).abs() - 0.19, (y - 0.26).abs() - 0.17)
    picture = _over(picture, frame, px, _rgb(0.98, 0.97, 0.94))
    picture = _over(picture, frame + 0.03, px, _rgb(0.60, 0.82, 0.95))
    picture = _over(picture, (x - cx).abs() - 0.012, px, picture)
    return _over(picture, 0.70 - y, px, _rgb(0.55, 0.36, 0.24))


def _stage(x: Tensor, y: Tensor, px: float, rng: np.random.Generator) -> Tensor:
    folds = 0.82 + 0.18 * torch.sin(x * 28 + rng.uniform(0, 6.28))
    picture = _rgb(0.62, 0.08, 0.14) * folds
    spot = (1 - _disc(x, y, 0.75 + rng.uniform(-0.3, 0.3), 0.5, 0.0) * 1.6).clamp(0, 1)
    picture = picture + 0.35 * spot * _rgb(1.0, 0.85, 0.7)
    return _over(picture, 0.72 - y, px, _rgb(0.72, 0.52, 0.32) * (0.85 + 0.3 * spot))


_PAINTERS = (_meadow, _beach, _desert, _forest, _snow, _street, _room, _stage)
