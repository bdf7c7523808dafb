"""Processes are replaced under load and no client notices."""

import pytest

from bench import rolling
from bench.verdict import Record


def test_a_hand_back_lasts_until_the_next_start() -> None:
    events = (("queued", 0), ("started", 10), ("requeued", 1000), ("started", 1800))
    seen = [{"what": "refused", "code": "ledger_unavailable"}, {"what": "cut"}]
    found = rolling.told(seen, {"v": Record("completed", "", events=events)})
    assert found["handed"] == {"count": 1, "p50": 0.8, "p99": 0.8, "max": 0.8}
    assert (found["refused"], found["codes"], found["cut"]) == (1, {"ledger_unavailable": 1}, 1)


def test_long_jobs_last_longer_than_the_grace() -> None:
    found = rolling.orders(seed=0, every=3)[:30]
    long = [order for order in found if order.steps * order.step_ms > 1000 * rolling.GRACE_S]
    assert len(long) == 10


@pytest.mark.slow
def test_small() -> None:
    found = rolling.run(3, 0, every=1, workers=4, threads=2, lease_s=15.0)
    assert [found[name] for name in ("failed", "lost", "torn", "refused")] == [0] * 4, found
    assert found["handed"]["count"] >= 1
