"""Quality falls with blur and grain, and asks for no more than drawn frames have."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from training.rewards.quality import SHARP, grain, quality, sharpness
from training.world.clip import sample_clip


@cache
def clips() -> Tensor:
    """Twenty held-out stills."""
    made = [sample_clip(seed, split="heldout", still=True).frames for seed in range(20)]
    return torch.from_numpy(np.stack(made))


def blurred(frames: Tensor, std: float) -> Tensor:
    x = torch.arange(-8, 9) / std
    bell = (-x.square() / 2).exp() / (-x.square() / 2).exp().sum()
    planes = F.pad(frames.flatten(0, 1).movedim(-1, 1).float(), (8,) * 4, "reflect")
    soft = F.conv2d(planes, (bell[:, None] * bell).expand(3, 1, -1, -1), groups=3)
    return soft.movedim(1, -1).round().to(torch.uint8).view_as(frames)


def noised(frames: Tensor, std: float) -> Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + std * noise).round().clamp(0, 255).to(torch.uint8)


def test_drawn_frames_are_clean() -> None:
    assert float(quality(clips()).mean()) > 0.95 and float(quality(clips()).min()) > 0.8


@pytest.mark.parametrize(("spoilt", "stages"), [(blurred, (1.0, 1.5, 2.0, 3.0)),
                                                (noised, (1.0, 2.0, 4.0, 8.0))])  # fmt: skip
def test_it_falls_with_every_stage(spoilt: object, stages: tuple[float, ...]) -> None:
    """For nine clips of ten at each stage, and by half in the end."""
    assert callable(spoilt)
    before = first = quality(clips())
    for stage in stages:
        now = quality(spoilt(clips(), stage))
        assert float((now < before + 1e-9).double().mean()) >= 0.9, stage
        before = now
    assert float(before.mean()) < 0.5 * float(first.mean())


def test_grain_is_the_noise_that_was_added() -> None:
    """On a plain frame to a tenth; edges add nothing as long as most is plain."""
    plain = torch.full((3, 64, 96), 128.0)
    noise = 4 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(grain(plain + noise), torch.full((3,), 4.0), rtol=0.1, atol=0)
    plain[:, 20:40, 30:60] = 10
    assert float(grain(plain).max()) == 0


def test_sharpness_of_an_edge_and_of_a_ramp() -> None:
    edge = torch.zeros(1, 64, 96)
    edge[:, 32:, 48:] = 255
    ramp = torch.linspace(0, 255, 96).expand(1, 64, 96) + torch.linspace(0, 255, 64)[:, None]
    assert float(sharpness(edge)) > SHARP > 0.2 > float(sharpness(ramp))
    assert float(sharpness(torch.zeros(1, 64, 96))) == 0
