"""What the workers know of models together."""

import random
from dataclasses import replace

import pytest

from service.fleet import Fleet, Outcomes
from tests.service.rig import connection, fleet, redis_url, settings

__all__ = ["connection", "fleet", "redis_url", "settings"]


def test_the_first_reason_stays_until_it_is_released(fleet: Fleet) -> None:
    fleet.quarantine("a" * 64, "flipped bit", "w1")
    fleet.quarantine("a" * 64, "another", "w2")
    (one,) = fleet.quarantined().values()
    assert (one.digest, one.reason, one.worker) == ("a" * 64, "flipped bit", "w1")
    assert fleet.release("a" * 64) and not fleet.release("a" * 64)
    assert fleet.quarantined() == {}


def test_outcomes_add_up_over_workers(fleet: Fleet) -> None:
    for score in (0.5, 0.7):
        fleet.note("a", False, score)
    fleet.note("a", True)
    found = fleet.outcomes("a")
    assert (found.jobs, found.failed, found.scored) == (3, 1, 2)
    assert (found.total, found.squares) == (pytest.approx(1.2), pytest.approx(0.74))
    assert fleet.outcomes("b") == Outcomes()
    fleet.release("a")
    assert fleet.outcomes("a") == Outcomes()


def scored(mean: float, jobs: int, spread: float = 0.1) -> Outcomes:
    return Outcomes(jobs, 0, jobs, mean * jobs, (mean**2 + spread**2) * jobs)


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Outcomes(3, 3), ""),
        (Outcomes(4, 4), "4 of 4 jobs failed, 2% elsewhere"),
        (Outcomes(100, 10), ""),
        (Outcomes(100, 20), "20 of 100 jobs failed"),
        (scored(0.1, 15), ""),
        (scored(0.1, 16), "likeness 0.100 in 16 jobs, 0.600 elsewhere"),
        (scored(0.55, 100), ""),
        (scored(0.5, 100), "likeness 0.500"),
        (scored(0.9, 100), ""),
    ],
)
def test_worse_is_worse_beyond_chance(one: Outcomes, reason: str) -> None:
    usual = Outcomes(100, 2, 98, 0.6 * 98, (0.36 + 0.01) * 98)
    assert one.worse_than(usual).startswith(reason) and bool(one.worse_than(usual)) == bool(reason)


@pytest.mark.parametrize(
    ("died", "reason"),
    [
        ({"one": 40}, ""),  # a broken machine takes job after job and kills each
        ({"one": 2, "two": 1}, ""),
        ({"one": 40, "two": 1}, ""),  # nor does it with one more death elsewhere, of so many jobs
        ({"one": 3, "two": 1}, "4 of 4 jobs failed, 2% elsewhere"),
        ({"one": 1, "two": 1, "three": 1, "four": 1}, "4 of 4 jobs failed, 2% elsewhere"),
    ],
)
def test_deaths_count_unless_they_are_one_machines(died: dict[str, int], reason: str) -> None:
    canary = Outcomes(sum(died.values()), died=died)
    assert canary.worse_than(Outcomes(100, 2)) == reason
    # Where the model before dies as often, it is not the canary.
    assert canary.worse_than(Outcomes(100, died={"one": 40, "three": 60})) == ""


def test_an_equal_canary_is_seldom_taken_back() -> None:
    chance = random.Random(1)

    def taken_back() -> bool:
        usual = replace(scored(0.5, 2000), failed=100)
        canary = Outcomes()
        for _ in range(100):
            score, failed = chance.gauss(0.5, 0.1), chance.random() < 0.05
            canary = Outcomes(
                canary.jobs + 1, canary.failed + failed, canary.scored + (not failed),
                canary.total + score * (not failed), canary.squares + score**2 * (not failed),
            )  # fmt: skip
            if canary.worse_than(usual):
                return True
        return False

    assert sum(taken_back() for _ in range(200)) <= 4
