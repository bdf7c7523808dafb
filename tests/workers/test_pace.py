"""Saving takes a two-hundredth of the work, by construction."""

import pytest

from workers.pace import ASSUMED_S, SHARE, Pace, Telling


class Clock:
    """Stands still but for what is done."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(steps: int, step_s: float, save_s: float) -> tuple[list[int], float, float]:
    """The steps after which a run saves, and the seconds of its work and of its saves."""
    clock = Clock()
    pace, saves = Pace(clock), []
    for done in range(1, steps + 1):
        clock.now += step_s
        if pace.due(done, steps):
            clock.now += save_s
            pace.saved(save_s)
            saves.append(done)
    return saves, steps * step_s, len(saves) * save_s


@pytest.mark.parametrize(("step_s", "save_s"), [(4.0, 0.5), (0.4, 0.05), (0.01, 0.02), (30, 0.1)])
def test_saves_take_at_most_a_two_hundredth_of_the_work(step_s: float, save_s: float) -> None:
    saves, work_s, saving_s = run(50, step_s, save_s)
    assert saving_s <= SHARE * work_s + save_s  # the last one is not yet paid for
    wanted = int(SHARE * 50 * step_s / save_s)
    assert abs(len(saves) - wanted) <= max(2, wanted // 10) or len(saves) == 49


def test_the_interval_is_the_fewest_steps_that_pay_for_a_save() -> None:
    saves, _, _ = run(50, 1.0, 0.049)
    assert [b - a for a, b in zip(saves, saves[1:], strict=False)] == [10] * (len(saves) - 1)
    assert saves[0] == 2  # after the assumed cost


def test_after_the_last_step_there_is_nothing_to_save() -> None:
    assert 50 not in run(50, 100.0, 0.01)[0]
    assert run(1, 1e6, 0.01)[0] == []


def test_a_short_job_is_never_saved() -> None:
    assert run(24, SHARE * ASSUMED_S, 0.02)[0] == []


@pytest.mark.parametrize(("told_s", "gap_s"), [(0.002, 0.2), (0.004, 0.4), (9.0, 0.5)])
def test_telling_takes_a_hundredth_of_the_time_but_never_falls_silent(
    told_s: float, gap_s: float
) -> None:
    clock = Clock()
    telling = Telling(clock)
    assert telling.due()
    with telling.timed():
        clock.now += told_s
    clock.now += gap_s - 1e-6
    assert not telling.due()
    clock.now += 2e-6
    assert telling.due()
