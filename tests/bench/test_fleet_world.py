"""The fleet's day: nothing is lost or made twice, and the autoscaler's rule as it is documented."""

from collections import Counter
from dataclasses import replace

import pytest

from bench.fleet_queue import Model
from bench.fleet_world import HOUR_MS, Fleet, Keda, World, asked

SMALL = World(cards=20, jobs=600, hours=6, batch_at_h=1, lost_an_hour=1.0, notice=0.5)


def test_what_is_asked_for() -> None:
    jobs = list(asked(SMALL))
    assert [job.at for job in jobs] == sorted(job.at for job in jobs)
    assert Counter(job.ref.partition("/")[0] for job in jobs) == {
        "batch": 300, "day": 150, "even": 150,
    }  # fmt: skip
    assert {job.at for job in jobs if job.ref.startswith("batch")} == {HOUR_MS}
    assert jobs == list(asked(SMALL)) != list(asked(replace(SMALL, seed=2)))
    assert {job.at for job in asked(replace(SMALL, together=True))} == {HOUR_MS}


@pytest.mark.parametrize("least", [2, 20])
def test_every_job_ends_once_whatever_is_lost(least: int) -> None:
    told = Fleet(SMALL, Model(1875), Keda(least, 20), least).run()
    assert told.ended == SMALL.jobs == sum(map(len, told.waits.values()))
    assert told.work == sum(job.lasts_ms for job in asked(SMALL))
    again = Counter(ref for ref, _ in told.starts)
    assert len(again) == SMALL.jobs
    assert sum(again.values()) - SMALL.jobs == told.handed_back + told.expired
    assert told.handed_back > 5 and told.expired > 5
    assert told.held > told.work
    assert all(0 <= running <= cards for _, _, running, cards in told.line[1:])


def test_without_losses_a_card_does_what_it_can() -> None:
    world = replace(SMALL, lost_an_hour=0.0, start_s=0.0, together=True)
    told = Fleet(world, Model(1875), lambda *_: 20, 20).run()
    assert told.handed_back == told.expired == 0 and len(told.starts) == world.jobs
    before = 20 * HOUR_MS  # nothing is asked for in the first hour
    assert told.work / (told.held - before) > 0.95


def test_up_at_once_and_down_slowly() -> None:
    rule = Keda(2, 1000)
    assert rule(0, 0, 2, 0) == 2
    assert rule(500, 0, 2, 15_000) == 6  # four more, or twice as many
    assert rule(500, 0, 100, 30_000) == 200
    assert rule(5000, 0, 900, 45_000) == 1000  # no more than there are
    quiet = Keda(2, 1000)
    assert quiet(105, 0, 100, 0) == 100  # a tenth more is as good
    assert quiet(0, 50, 100, 60_000) == 100  # for five minutes the most that was wanted counts
    downs = [quiet(0, 50, cards, at) for cards, at in ((100, 400_000), (90, 415_000))]
    assert downs == [90, 90]  # a tenth in a minute
    assert quiet(0, 50, 90, 461_000) == 81
    assert Keda(2, 1000, running=False)(0, 50, 50, 0) == 45  # it does not see them
