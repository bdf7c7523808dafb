"""Advantages: demand 16 on reinforcement, by hand numbers and invariances."""

from __future__ import annotations

import pytest
import torch

from tests.training import grpo_checks as checks
from tests.training.grpo_checks import GROUPS, REWARDS
from training.advantages import advantages, best_and_worst, weights


def test_demand_16_hand_numbers() -> None:
    checks.check_advantages()


def test_demand_16_the_spread_of_all() -> None:
    """Live rewards around their means: -2 -1 0 3 and -1 1 -1 1, so the variance is 18 / 8."""
    found = advantages(REWARDS, GROUPS, "global")
    want = [-2 / 1.5, -1 / 1.5, 0, 2, 0, 0, 0, 0, -1 / 1.5, 1 / 1.5, -1 / 1.5, 1 / 1.5]
    torch.testing.assert_close(found.value_B, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("spread", ["group", "global"])
def test_demand_16_shift_and_scale_do_not_matter(spread: str) -> None:
    want = advantages(REWARDS, GROUPS, spread).value_B
    shift = torch.where(GROUPS == 7, 40.0, -3.0)
    torch.testing.assert_close(advantages(REWARDS + shift, GROUPS, spread).value_B, want)
    torch.testing.assert_close(advantages(REWARDS * 0.01, GROUPS, spread).value_B, want)


def test_demand_16_order_and_names_of_groups_do_not_matter() -> None:
    want = advantages(REWARDS, GROUPS).value_B
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(advantages(REWARDS[order], GROUPS[order] + 100).value_B, want[order])


def test_demand_16_groups_that_say_nothing_count_nothing() -> None:
    """Alike, alone, or with a scorer that failed: exactly 0, and the others as without them."""
    rewards = torch.cat([REWARDS, torch.tensor([4.0, float("nan"), 2.0])])
    groups = torch.cat([GROUPS, torch.tensor([11, 12, 12])])
    for spread in ("group", "global"):
        found = advantages(rewards, groups, spread)
        assert found.value_B[12:].tolist() == [0, 0, 0] and not found.live_B[12:].any()
        assert torch.equal(found.value_B[:12], advantages(REWARDS, GROUPS, spread).value_B)
    nothing = advantages(torch.ones(4), torch.tensor([0, 0, 1, 1]), "global")
    assert not nothing.live_B.any() and nothing.value_B.tolist() == [0] * 4


def test_an_outlier_is_cut_at_five_standard_deviations() -> None:
    found = advantages(torch.tensor([0.0] * 99 + [1.0]), torch.zeros(100))
    assert float(found.value_B.max()) == 5


def test_best_and_worst() -> None:
    value = torch.tensor([0.5, -2.0, 0.1, 3.0, -0.3, 1.0])
    assert best_and_worst(value, 0).tolist() == list(range(6))
    assert best_and_worst(value, 2).tolist() == [1, 3]
    assert best_and_worst(value, 4).tolist() == [1, 3, 4, 5]


def test_weights_make_the_mean_one_over_the_live() -> None:
    live = torch.tensor([True, True, False, False, False, False])
    loss = torch.tensor([2.0, 4.0, 9.0, 9.0, 9.0, 9.0])
    assert float((weights(live) * loss).mean()) == pytest.approx(3)
    assert weights(torch.zeros(3, dtype=torch.bool)).tolist() == [0, 0, 0]
