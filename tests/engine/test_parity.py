"""The whole of plain Wan against diffusers: transformer, guidance and solver, step after step.

Tiny random weights, every parameter random, fp32. Wan's own table of times: diffusers' default one
for flow models differs from it in the third digit.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from engine import flow
from engine.dit import Condition
from engine.sample import Conditions, sample
from engine.spec import Guidance
from tests.engine.conftest import TOY, diffusers_twin, random_dit

WAN = replace(TOY, subject_layers=0, text_len=512)
SHAPES = [(1, 16, 1, 2, 2), (1, 16, 3, 6, 10), (2, 16, 2, 14, 4)]


def padded(length: int, rows: int, seed: int) -> torch.Tensor:
    """Features of a prompt of `length` tokens; the pads are zeros, and are attended to."""
    generator = torch.Generator().manual_seed(seed)
    text_BTM = torch.zeros(rows, WAN.text_len, WAN.text_dim)
    text_BTM[:, :length] = torch.randn(rows, length, WAN.text_dim, generator=generator)
    return text_BTM


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [20, 77, 512])
@pytest.mark.parametrize("t", [0.999, 0.5, 0.003])
def test_one_forward(shape, length, t):
    ours = random_dit(WAN, seed=3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    text, t_B = padded(length, shape[0], 5), torch.full((shape[0],), t)
    assert error(ours(x, t_B, text), diffusers_twin(ours)(x, t_B * 1000, text).sample) <= 2e-5


def test_pads_are_part_of_the_model():
    """What the bound above would catch: masking the pads moves the output by far more."""
    ours, x, t_B = random_dit(WAN, seed=3), torch.randn(SHAPES[1]), torch.tensor([0.5])
    text = padded(20, 1, 5)
    assert error(ours(x, t_B, text[:, :20]), ours(x, t_B, text)) > 1e-2


@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_six_steps_of_the_whole_loop(shape, scale):
    ours = random_dit(WAN, seed=6)
    model, rows = diffusers_twin(ours), shape[0]
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    text, negative = padded(77, rows, 8), padded(20, rows, 9)
    kept = Conditions(Condition(ours.text_kv(text)), Condition(ours.text_kv(negative)))
    plan = flow.schedule("unipc", 6, 5.0)
    got = sample(ours.denoise, noise, kept, plan, Guidance(scale=scale))

    solver = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    solver.set_timesteps(sigmas=np.linspace(float(np.float32(0.999)), 0, 7)[:-1])
    x = noise
    for timestep in solver.timesteps:
        t_B = timestep.expand(rows)
        full = model(x, t_B, text).sample
        empty = model(x, t_B, negative).sample
        x = solver.step(empty + scale * (full - empty), timestep, x).prev_sample
    assert error(got, x) <= 5e-5
