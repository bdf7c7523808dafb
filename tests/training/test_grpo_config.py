"""Numbers that do not go together are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest

from engine.flow import Noise
from tests.training import toy_flow
from training.rollout import RolloutConfig


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"spread": "all"}, "spread"),
        ({"keep": 3}, "keep"),
        ({"keep": 18}, "keep"),
        ({"train_steps": 10}, "train_steps"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        toy_flow.plane_config(**changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"window": 10}, "window"), ({"reach": 10}, "reach"), ({"branch": True}, "branch")],
)
def test_so_are_rollouts(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=f"^{field}:"):
        RolloutConfig(10, noise=Noise(), **changes)


def test_groups_and_rows_must_come_out_even() -> None:
    config = toy_flow.plane_config(groups=6, group_size=4, rows=8)
    assert config.for_loop(1).accumulate == 3 * 5 and config.for_loop(1).save_every_s == 0
    with pytest.raises(ValueError, match="^rows:"):
        config.for_loop(2)
    with pytest.raises(ValueError, match="^groups:"):
        config.for_loop(4)
