"""A job goes on soon after its worker's death, and ends as if nothing had been."""

import pytest

from bench import recovery
from bench.client import Order
from bench.recovery import Case, cases, starts, steps_of

TOLD = [
    ("queued", {"at_ms": 0}),
    ("started", {"at_ms": 1000}),
    ("progress", {"stage": "denoise", "step": 0}),
    ("progress", {"stage": "denoise", "step": 9}),
    ("requeued", {"at_ms": 4000}),
    ("started", {"at_ms": 5000}),
    ("progress", {"stage": "encode", "step": 0}),
    ("progress", {"stage": "denoise", "step": 6}),
    ("completed", {"at_ms": 6000}),
]


def test_steps_made_again_are_those_from_where_it_went_on() -> None:
    case = Case(Order(1, 1, 20, 100), at=9, whole=True, events=TOLD)
    assert steps_of(case) == (9, 6)
    assert starts(case) == [1.0, 5.0]


def test_half_of_the_deaths_are_of_whole_trees_at_random_steps() -> None:
    found = cases(40, seed=0)
    assert sum(case.whole for case in found) == 20
    assert all(1 <= case.at < recovery.STEPS for case in found)
    assert len({case.at for case in found}) > 5
    assert [case.at for case in found] == [case.at for case in cases(40, seed=0)]


@pytest.mark.slow
def test_small() -> None:
    found = recovery.run(6, 0, at_once=3, lease_s=3.0)
    assert (found["jobs"], found["kills"], found["executions"]) == (6, 6, 12), found
    assert (found["unequal"], found["failed"], found["unsaved"]) == (0, 0, 0), found
    assert found["claim_s"]["count"] == 6
