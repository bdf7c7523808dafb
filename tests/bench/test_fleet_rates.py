"""What Redis spends: the arithmetic, and a short measurement of the real one."""

import pytest

from bench.fleet_rates import BUSY, Habits, busy, durable_redis, fill, limit, measure
from service.durable import Durability
from service.ledger import Ledger, connect

US = {name: [100.0, 90.0, 110.0] for name in ("submit", "claim", "commit", "step", "beat")}
US |= {"announce": [50.0, 50.0, 50.0], "look": [1.0, 1.0, 1.0], "figures": [2.0, 2.0, 2.0]}


def test_the_limit_is_where_the_thread_is_busy() -> None:
    habits = Habits(job_s=600, step_s=10, lease_s=15, reapers=2, scrapes_s=5)
    found = limit(US, habits)
    assert sum(busy(US, found["cards"], habits).values()) == pytest.approx(BUSY, rel=1e-3)
    assert sum(found["share"].values()) == pytest.approx(1, abs=0.01)
    # One card: three calls in 600 s, one in 10 s, a beat and a word in 5 s; looked at 2 times a s.
    spent = 3 * 100 / 600 + 100 / 10 + (100 + 50) / 5 + 2 * 1 + 2 / 5
    assert sum(busy(US, 1, habits).values()) == pytest.approx(spent / 1e6)
    longer = limit(US, Habits(job_s=600, lease_s=60))
    assert longer["cards"] > 2 * found["cards"]


def test_a_measurement_of_the_real_one() -> None:
    told = measure(depth=200, each=20, rounds=2, cards=10)
    assert 500 < told["bytes_per_job"] < 50_000
    assert set(told["us"]) == set(US)
    for name, (median, least, most) in told["us"].items():
        assert 0 <= least <= median <= most < 1e5, name
    # The clock of a process's CPU is coarse, so not of every kind.
    assert sum(median for median, _, _ in told["us"].values()) > 50


def test_what_is_filled_in_are_jobs_and_redis_is_as_the_ledger_asks() -> None:
    with durable_redis() as settings:
        client = connect(settings)
        Durability(client, settings).require()
        fill(client, settings, 30)
        books = Ledger(client, settings).books()
        assert (books.submitted, books.queued, books.balanced) == (30, 30, True)
        client.close()
