"""Time: identities of the straight path, and the solvers against upstream's."""

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from engine import flow


def normals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_ends_of_the_path():
    x0, eps = normals(2, 4, 3), normals(2, 4, 3, seed=1)
    assert torch.equal(flow.add_noise(x0, eps, torch.tensor(0.0)), x0)
    assert torch.equal(flow.add_noise(x0, eps, torch.tensor(1.0)), eps)


def test_each_row_has_its_own_time():
    x0, eps = normals(2, 4, 3), normals(2, 4, 3, seed=1)
    mixed = flow.add_noise(x0, eps, torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], x0[0]) and torch.equal(mixed[1], eps[1])


def test_velocity_is_the_slope_and_leads_back_to_x0():
    x0, eps = normals(2, 4).double(), normals(2, 4, seed=1).double()
    t, h = torch.tensor([0.3, 0.8]).double(), 1e-6
    v = flow.velocity_target(x0, eps)
    slope = (flow.add_noise(x0, eps, t + h) - flow.add_noise(x0, eps, t - h)) / (2 * h)
    torch.testing.assert_close(slope, v, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(flow.predict_x0(flow.add_noise(x0, eps, t), v, t), x0)


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_table_runs_from_one_to_zero_and_shift_is_its_closed_form(shift):
    table = flow.times(8, shift)
    assert table[0] == 1 and table[-1] == 0 and (table.diff() < 0).all()
    assert table[4] == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5))


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
def test_a_perfect_velocity_reaches_x0_in_any_number_of_steps(solver, num_steps):
    x0, eps = normals(1, 3, 4).double(), normals(1, 3, 4, seed=1).double()
    plan, history = flow.schedule(solver, num_steps, 5.0), flow.History()
    x = flow.add_noise(x0, eps, plan.times[0])
    for index in range(plan.num_steps):
        x, history = flow.step(plan, index, x, flow.velocity_target(x0, eps), history)
    torch.testing.assert_close(x, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 6, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0])
def test_unipc_is_upstreams(num_steps, shift):
    """On the table of Wan, and on a velocity that is far from linear."""
    upstream = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    first = float(np.float32(0.999))
    upstream.set_timesteps(sigmas=np.linspace(first, 0, num_steps + 1)[:-1])
    plan, history = flow.schedule("unipc", num_steps, shift), flow.History()
    assert torch.equal(plan.times, upstream.sigmas.double())
    assert torch.allclose(plan.door * 1000, upstream.timesteps.double(), rtol=0, atol=1e-9)

    mix = normals(4, 4, seed=2) / 2
    ours = theirs = normals(2, 4, 3, 5, 5)
    for index, timestep in enumerate(upstream.timesteps):
        door = float(plan.door[index])
        v = torch.tanh(torch.einsum("ij,bj...->bi...", mix, ours) * (1 + door))
        ours, history = flow.step(plan, index, ours, v, history)
        v = torch.tanh(torch.einsum("ij,bj...->bi...", mix, theirs) * (1 + door))
        theirs = upstream.step(v, timestep, theirs).prev_sample
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_unipc_converges_faster_than_euler():
    """dx/dt = -x: the exact answer is known; the higher order must come nearer to it."""

    def solve(solver: str) -> float:
        plan, history = flow.schedule(solver, 12, 1.0), flow.History()
        x = torch.exp(-plan.times[0]).reshape(1, 1)
        for index in range(plan.num_steps):
            x, history = flow.step(plan, index, x, -x, history)
        return abs(float(x) - 1.0)

    assert solve("unipc") < solve("euler") / 5


def test_training_times_lie_inside_and_follow_the_shift():
    low = flow.sample_t(4000, torch.Generator().manual_seed(0))
    high = flow.sample_t(4000, torch.Generator().manual_seed(0), shift=3.0)
    assert 0 < low.min() and high.max() < 1
    assert abs(low.median() - 0.5) < 0.02
    torch.testing.assert_close(high, flow.shift_times(low, 3.0))
