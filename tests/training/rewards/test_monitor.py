"""The alarm: demand 26 on reinforcement, on canned series."""

from __future__ import annotations

import warnings

import pytest

from training.rewards.monitor import Monitor


def monitor() -> Monitor:
    return Monitor({"oracle": 0.02, "motion": 0.03}, {"copy_paste": 0.05})


def row(oracle: float = 0.5, motion: float = 0.4, copy_paste: float = -0.1) -> dict[str, float]:
    return {"oracle": oracle, "motion": motion, "copy_paste": copy_paste}


@pytest.mark.parametrize(
    ("name", "values"),
    [("oracle", (0.5, 0.45, 0.4)), ("motion", (0.4, 0.3, 0.2)), ("copy_paste", (-0.1, 0.1, 0.3))],
)
def test_demand_26_reward_up_and_held_out_the_wrong_way(
    name: str, values: tuple[float, ...]
) -> None:
    watch = monitor()
    assert watch.look(0.5, row(**{name: values[0]})) == []
    assert watch.look(0.6, row(**{name: values[1]})) == [name]
    with pytest.warns(UserWarning, match=name):
        watch.look(0.7, row(**{name: values[2]}))


def test_demand_26_no_alarm_without_a_reason() -> None:
    """Both up; both down; down by less than its spread; and one odd look alone."""
    series = [
        [(0.5, row()), (0.6, row(oracle=0.6)), (0.7, row(oracle=0.7))],
        [(0.5, row()), (0.4, row(oracle=0.4)), (0.3, row(oracle=0.3))],
        [(0.5, row()), (0.6, row(oracle=0.49)), (0.7, row(oracle=0.485))],
        [(0.5, row()), (0.6, row(oracle=0.4)), (0.7, row()), (0.8, row(oracle=0.4))],
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for looks in series:
            watch = monitor()
            for reward, figures in looks:
                watch.look(reward, figures)
