"""SDE steps: the demands on reinforcement, 1 to 11 (7 is in tests/training/test_rollout)."""

import math

import pytest
import torch

from engine import flow
from engine.flow import Noise, sde_step
from tests.engine import sde_checks as checks
from tests.engine.sde_checks import normals

EXACT = Noise("exact", 0.7)
PRINTED = [Noise("id_crafter", 0.7), Noise("id_crafter", 1.0), Noise("identity_grpo", 1.0),
           Noise("constant", 0.3)]  # fmt: skip
ALL = [EXACT, Noise("exact", 1.0), *PRINTED]


@pytest.mark.parametrize("noise", PRINTED, ids=str)
def test_demand_01_the_printed_mean(noise):
    checks.check_algebra(sde_step, noise)


@pytest.mark.parametrize("name", flow.NOISES)
def test_demand_01_without_noise_it_is_eulers_step(name):
    x, v = normals(2, 5).float(), normals(2, 5, seed=1).float()
    made = sde_step(x, v, 0.7, 0.6, Noise(name, 0.0))
    assert torch.equal(made.x_next, flow.euler_step(x, v, 0.7, 0.6)) and made.log_prob_B is None


def test_demand_02_the_exact_step_is_an_euler_step_and_the_paths_own_noising():
    x, v = normals(4, 3), normals(4, 3, seed=1)
    for t, s in ((1.0, 0.98), (0.6, 0.5), (0.2, 0.1)):
        made = sde_step(x, v, t, s, EXACT, draw=checks.no_noise)
        r = math.sqrt(s**2 - made.std**2)
        below = r / (1 - s + r)
        alpha = (1 - s) / (1 - below)
        want = alpha * flow.euler_step(x, v, t, below)
        torch.testing.assert_close(made.mean, want, rtol=0, atol=1e-6)
        assert made.std**2 == pytest.approx(s**2 - (alpha * below) ** 2, abs=1e-12)


@pytest.mark.parametrize("noise", [EXACT, *PRINTED[2:]], ids=str)
def test_demand_03_marginals_are_right_after_every_step(noise):
    checks.check_marginals(sde_step, noise)


@pytest.mark.parametrize("noise", PRINTED[:2], ids=str)
def test_demand_03_the_printed_schedule_is_right_only_in_the_end(noise):
    """At t = 1 its noise is infinite however small the step: whatever bounds it, the first steps
    of Euler's kind keep an error of some ten percent, which later steps take away again."""
    errors = [checks.worst(sde_step, noise, num) for num in (100, 400)]
    assert 0.08 < errors[1] <= errors[0] < 0.125
    got, true = checks.variances(sde_step, noise, flow.times(400, 3.0).tolist())[-1]
    assert abs(got / true - 1) < 0.01


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_demand_04_so_are_samples(noise):
    """2e5 samples against the closed form, four standard errors."""
    num, table = 200_000, flow.times(12, 3.0).tolist()
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(num, 1, generator=generator, dtype=torch.float64)

    def draw(mean):
        return torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    for t, s in zip(table, table[1:], strict=False):
        x = sde_step(x, checks.velocity(x, t), t, s, noise, draw=draw).x_next
    variance = checks.variances(sde_step, noise, table)[-1][0]
    assert abs(float(x.mean()) - 1) < 4 * math.sqrt(variance / num)
    assert abs(float(x.var()) / variance - 1) < 4 * math.sqrt(2 / num)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_demand_05_no_step_draws_too_much_noise(noise):
    checks.check_bounds(sde_step, noise)


def test_demand_05_nothing_happens_at_one_that_does_not_happen_near_it():
    x, v = normals(2, 3), normals(2, 3, seed=1)
    for noise in ALL:
        made = [sde_step(x, v, t, 0.95, noise, draw=checks.no_noise) for t in checks.STARTS]
        for other in made[1:]:
            assert other.std == pytest.approx(made[0].std, rel=5e-3)
            torch.testing.assert_close(other.mean, made[0].mean, rtol=0, atol=5e-3)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_demand_06_the_last_step_is_without_noise(noise):
    checks.check_last_step(sde_step, noise)


def test_demand_08_steps_go_by_their_number():
    """Of a hundred steps with shift 12 some have the same whole timestep: still each is itself."""
    plan = flow.schedule("unipc", 100, 12.0)
    assert len(plan.door.unique()) < 100 and (plan.times.diff() < 0).all()
    x = torch.ones(1, 1)
    for index in range(3):
        t, s = float(plan.times[index]), float(plan.times[index + 1])
        moved = flow.step(plan._replace(solver="euler"), index, x, x, flow.History())[0]
        assert float(moved) == pytest.approx(1 + s - t)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_demand_09_the_log_probability_is_a_normals(noise):
    checks.check_density(sde_step, noise)


@pytest.mark.parametrize("noise", ALL, ids=str)
def test_demand_10_no_gradient_through_the_sample(noise):
    checks.check_no_gradient_through_the_sample(sde_step, noise)


@pytest.mark.parametrize("noise", [EXACT, PRINTED[0]], ids=str)
def test_demand_11_the_score_function_is_unbiased(noise):
    """An affine policy v = theta x + .2 over three steps in two dimensions, reward -|x - 1|^2: the
    gradient of its expectation is known; the mean over elements is half of the sum."""
    table, num, dim = [0.8, 0.6, 0.4, 0.25], 400_000, 2
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num, dim, generator=generator, dtype=torch.float64)

    def draw(mean):
        return torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    with torch.enable_grad():
        theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        rows = theta.expand(num)[:, None].clone().requires_grad_(True)
        mean, variance = torch.zeros((), dtype=torch.float64), torch.ones(())
        total = torch.zeros(num, dtype=torch.float64)
        for t, s in zip(table, table[1:], strict=False):
            law = flow.kernel(noise, t, s)
            gain = law.x + law.v * theta
            mean, variance = gain * mean + law.v * 0.2, gain**2 * variance + law.std**2
            made = sde_step(x, rows * x + 0.2, t, s, noise, draw=draw)
            total = total + made.log_prob_B
            x = made.x_next
        (true,) = torch.autograd.grad(-dim * ((mean - 1) ** 2 + variance), theta)
        (score,) = torch.autograd.grad(total.sum(), rows)
    reward = -((x - 1) ** 2).sum(1)
    each = (reward - reward.mean()) * score[:, 0]
    error = float(each.std()) / math.sqrt(num)
    assert abs(dim * float(each.mean()) - float(true)) < 4 * dim * error
    assert error * dim < 0.02 * abs(float(true))


def test_frames_in_front_do_not_count():
    x, v, x_next = (normals(2, 3, 4, 2, 2, seed=seed) for seed in range(3))
    made = sde_step(x, v, 0.6, 0.5, EXACT, x_next, leading=1)
    x_next[:, :, 0] += 1
    assert torch.equal(sde_step(x, v, 0.6, 0.5, EXACT, x_next, leading=1).log_prob_B,
                       made.log_prob_B)  # fmt: skip
    x_next[:, :, 1] += 1
    assert (sde_step(x, v, 0.6, 0.5, EXACT, x_next, leading=1).log_prob_B
            != made.log_prob_B).all()  # fmt: skip


@pytest.mark.parametrize("leading", [0, 1])
def test_a_row_is_the_mean_of_its_frames(leading):
    x, v, x_next = (normals(2, 3, 4, 2, 2, seed=seed) for seed in range(3))
    given = (x, v, 0.6, 0.5, EXACT, x_next)
    whole = sde_step(*given, leading=leading).log_prob_B
    made = sde_step(*given, leading=leading, by_frame=True)
    assert made.log_prob_B.shape == (2, 4 - leading)
    torch.testing.assert_close(made.log_prob_B.mean(1), whole)
    x_next[0, :, 2] += 1  # one frame of one row
    moved = sde_step(*given, leading=leading, by_frame=True).log_prob_B != made.log_prob_B
    assert moved.nonzero().tolist() == [[0, 2 - leading]]


def test_half_precision_and_unknown_names_are_refused():
    x = torch.ones(1, 1)
    with pytest.raises(AssertionError, match="ratios"):
        sde_step(x.bfloat16(), x, 0.6, 0.5, EXACT)
    with pytest.raises(ValueError, match="id_crafter"):
        sde_step(x, x, 0.6, 0.5, Noise("cosine"))
