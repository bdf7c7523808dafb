"""The clipped ratio and the KL: demands 13 to 15 on reinforcement."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from tests.training import grpo_checks as checks
from training.grpo_loss import ClipWatch, clip_range, gaussian_kl, surrogate

ADVANTAGE = torch.tensor([2.0, -1.0, 0.5, -3.0], dtype=torch.float64)


def gradient(shift: Tensor, epsilon: float) -> Tensor:
    """d loss / d log-probability of each row, for new log-probabilities `shift` above the old."""
    log_prob = shift.double().requires_grad_(True)
    loss = surrogate(log_prob, torch.zeros(4, dtype=torch.float64), ADVANTAGE, epsilon).loss_B
    (found,) = torch.autograd.grad(loss.sum(), log_prob)
    return found


def test_demand_13_at_ratio_one_it_is_the_policy_gradient() -> None:
    for epsilon in (1e-4, 0.2, 1e9):
        assert torch.equal(gradient(torch.zeros(4), epsilon), -ADVANTAGE)


def test_demand_13_after_a_big_step_the_right_quadrants_stop() -> None:
    """A > 0 with r > 1 + eps and A < 0 with r < 1 - eps learn nothing more; the others do."""
    up, down = torch.full((4,), 0.5), torch.full((4,), -0.5)
    assert (gradient(up, 0.2) == 0).tolist() == [True, False, True, False]
    assert (gradient(down, 0.2) == 0).tolist() == [False, True, False, True]
    told = surrogate(up.double(), torch.zeros(4), ADVANTAGE, 0.2)
    assert told.clipped_B.tolist() == [True, False, True, False]
    torch.testing.assert_close(told.loss_B, -torch.tensor([1.2, -1.0, 1.2, -1.0]).double()
                               * torch.tensor([2.0, 1.6487212707, 0.5, 4.9461638121]))  # fmt: skip


def test_demand_14_the_clip_range_follows_the_size() -> None:
    assert clip_range(0.3, 7680) == pytest.approx(0.3 / 7680**0.5)
    assert clip_range(0.474, 224_640) == pytest.approx(1e-3, rel=1e-3)  # Identity-GRPO's
    assert clip_range(0.0256, 65_536) == pytest.approx(1e-4, rel=1e-3)  # Flow-GRPO's


def test_demand_14_it_clips_equally_often_at_every_size() -> None:
    """Latents of any size, means off by .004 of the noise: as many ratios are clipped."""
    shares = []
    for size in (64, 4096):
        generator = torch.Generator().manual_seed(0)
        eps = torch.randn(2000, size, generator=generator, dtype=torch.float64)
        change = 0.004 * torch.randn(2000, size, generator=generator, dtype=torch.float64)
        moved = -0.5 * (eps - change).square().mean(1) + 0.5 * eps.square().mean(1)
        advantage = moved.new_ones(2000)
        clipped = surrogate(moved, 0 * moved, advantage, clip_range(0.002, size)).clipped_B
        shares.append(float(clipped.double().mean()))
    assert 0.2 < shares[1] <= shares[0] + 0.02 < 0.35, shares


@pytest.mark.parametrize(
    ("share", "moved", "text"), [(0.8, False, "more than"), (0.0, True, "none")]
)
def test_demand_14_a_range_that_does_not_fit_is_told(share: float, moved: bool, text: str) -> None:
    watch = ClipWatch(patience=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for update in range(50):
            watch.add(update, share, moved)
            watch.add(update, share, moved)
        watch = ClipWatch(patience=50)
        for update in range(200):  # one good update in fifty
            watch.add(update, 0.1 if update % 50 == 49 else share, moved)
        watch = ClipWatch()
        for update in range(200):  # on-policy ratios are 1: nothing to clip
            watch.add(update, 0.0, False)
    watch = ClipWatch(patience=50)
    with pytest.warns(UserWarning, match=text):
        for update in range(51):
            watch.add(update, share, moved)


def test_demand_15_the_kl_is_that_of_the_steps_laws() -> None:
    checks.check_kl()


def test_demand_15_the_kl_has_a_gradient() -> None:
    mean = torch.ones(2, 3, requires_grad=True)
    (found,) = torch.autograd.grad(gaussian_kl(mean, torch.zeros(2, 3), 0.5).sum(), mean)
    torch.testing.assert_close(found, torch.full((2, 3), 1 / 0.25 / 3))
