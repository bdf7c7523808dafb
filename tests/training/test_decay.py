"""When the rate falls: the closed forms of the schedules."""

from __future__ import annotations

import pytest

from training.decay import decay_window, is_decaying, rate_factor
from training.loop import LoopConfig
from training.state import Position

WSD = LoopConfig("x", steps=100, warmup=10, decay_fraction=0.2)


def at(step: int, **more: int) -> Position:
    return Position(step=step, **more)


def test_wsd_warms_up_stays_and_falls_to_nothing() -> None:
    assert rate_factor(WSD, at(0)) == pytest.approx(0.1)
    assert rate_factor(WSD, at(50)) == 1.0
    assert decay_window(WSD, at(0)) == (80, 20)
    assert rate_factor(WSD, at(89)) == pytest.approx(0.5)
    assert rate_factor(WSD, at(99)) == pytest.approx(0.0)


def test_decay_begins_as_planned_or_as_asked() -> None:
    assert [is_decaying(WSD, at(step)) for step in (0, 79, 80, 99)] == [False, False, True, True]
    timed = LoopConfig("x", minutes=5.0)
    assert not is_decaying(timed, at(500))
    asked = at(500, decay_start=400, decay_steps=200)
    assert is_decaying(timed, asked) and rate_factor(timed, asked) == pytest.approx(1 - 101 / 200)


def test_other_schedules_have_no_final_decay() -> None:
    for schedule in ("constant", "cosine"):
        config = LoopConfig("x", steps=100, schedule=schedule)
        assert not is_decaying(config, at(99))
