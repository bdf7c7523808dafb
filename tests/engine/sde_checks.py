"""What every SDE step must satisfy, as functions of the step: the tests hand them `flow.sde_step`,
the mutation table hands them broken ones. The numbers are of the list of demands on reinforcement
(docs/training.md): 1 algebra, 3 marginals, 5 bounds, 6 last step, 9 density, 10 no gradient.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from engine import flow
from engine.flow import Noise, SdeStep
from engine.presets import MINIATURE, WAN_1_3B, WAN_14B

Step = Callable[..., SdeStep]

SPREAD = 0.25  # variance of the data, whose mean is 1
# Where UniPC tables of different versions begin.
STARTS = (1.0, 1 - 1e-6, 1 - 3e-4)


def no_noise(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slope(t: float) -> float:
    """The velocity of Gaussian data N(1, SPREAD) is slope * (x - (1 - t)) - 1, exactly."""
    return (t - (1 - t) * SPREAD) / ((1 - t) ** 2 * SPREAD + t**2)


def velocity(x: Tensor, t: float) -> Tensor:
    return slope(t) * (x - (1 - t)) - 1


def variances(step: Step, noise: Noise, table: Sequence[float]) -> list[tuple[float, float]]:
    """(variance, true variance) after every step: each is affine, so two points tell all of it."""
    variance, found = 1.0, []
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for t, t_next in pairwise(table):
        made = step(points, velocity(points, t), t, t_next, noise, draw=no_noise)
        gain = float(made.mean[1] - made.mean[0])
        variance = gain**2 * variance + made.std**2
        found.append((variance, (1 - t_next) ** 2 * SPREAD + t_next**2))
    return found


def worst(step: Step, noise: Noise, num_steps: int, shift: float = 3.0) -> float:
    """Largest relative error of the variance after any of the steps."""
    table = [float(t) for t in flow.times(num_steps, shift)]
    return max(abs(got / true - 1) for got, true in variances(step, noise, table))


def check_algebra(step: Step, noise: Noise) -> None:
    """1: x + [v + g^2 / (2 t) (x + (1 - t) v)] (s - t), with g^2 = std^2 / (t - s)."""
    x, v = normals(4, 3), normals(4, 3, seed=1)
    for t, s in ((0.9, 0.8), (0.5, 0.45), (0.2, 0.1)):
        made = step(x, v, t, s, noise, draw=no_noise)
        g2 = made.std**2 / (t - s)
        want = x + (v + g2 / (2 * t) * (x + (1 - t) * v)) * (s - t)
        torch.testing.assert_close(made.mean, want, rtol=0, atol=1e-6)


def check_marginals(step: Step, noise: Noise) -> None:
    """3: after every step; errors halve when the number of steps doubles, below 5 % at 400."""
    errors = [worst(step, noise, num) for num in (100, 200, 400)]
    assert errors[-1] < 0.05, errors
    for coarse, fine in pairwise(errors):
        assert 1.7 <= coarse / fine <= 2.3, errors


def tables() -> list[list[float]]:
    """Times of all shipped presets, and of others that begin where a scheduler may."""
    found = []
    for preset in (MINIATURE, WAN_1_3B, WAN_14B):
        given = preset.defaults
        for num in (10, 25, given.steps):
            for solver in ("euler", "unipc"):
                found.append(flow.schedule(solver, num, given.shift).times.tolist())
    return found + [[start, *flow.times(25, 3.0).tolist()[1:]] for start in STARTS]


def check_bounds(step: Step, noise: Noise) -> None:
    """5: no step draws more noise than belongs at its end, or blows x up."""
    unit = torch.ones(1, 1, dtype=torch.float64)
    for table in tables():
        for t, s in pairwise(table):
            made = step(unit, 0 * unit, t, s, noise, draw=no_noise)
            assert made.std <= s and abs(float(made.mean)) <= 2, (t, s, made)


def check_last_step(step: Step, noise: Noise) -> None:
    """6: it is Euler's, bit for bit, and has no log-probability."""
    x, v = normals(2, 3).float(), normals(2, 3, seed=1).float()
    for table in tables():
        made = step(x, v, table[-2], table[-1], noise)
        assert table[-1] == 0 and made.std == 0 and made.log_prob_B is None
        assert torch.equal(made.x_next, flow.euler_step(x, v, table[-2], 0.0))


def check_density(step: Step, noise: Noise) -> None:
    """9: torch's normal distribution, its mean over the elements of a row, and its gradient."""
    x, v, x_next = (normals(3, 4, 2, seed=seed) for seed in range(3))
    with torch.enable_grad():
        v.requires_grad_(True)
        made = step(x, v, 0.6, 0.5, noise, x_next)
        law = torch.distributions.Normal(made.mean, made.std)
        each = law.log_prob(x_next).flatten(1)
        assert made.log_prob_B is not None
        torch.testing.assert_close(made.log_prob_B, each.mean(1))
        torch.testing.assert_close(made.log_prob_B * 8, each.sum(1))
        (gradient,) = torch.autograd.grad(made.log_prob_B.sum(), made.mean)
    torch.testing.assert_close(gradient, (x_next - made.mean) / made.std**2 / 8)


def check_no_gradient_through_the_sample(step: Step, noise: Noise) -> None:
    """10: d log p / d theta is there for a mean that depends on theta; were x_next drawn as
    mean + std eps with its gradient, it would be exactly zero."""
    x = normals(3, 4)
    torch.manual_seed(0)  # it may be small by chance
    with torch.enable_grad():
        theta = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        made = step(x, theta * x, 0.6, 0.5, noise)
        assert made.log_prob_B is not None
        (gradient,) = torch.autograd.grad(made.log_prob_B.sum(), theta)
    assert not made.x_next.requires_grad
    assert math.fabs(float(gradient)) > 1e-3
