"""Kill everything, in small: no job is lost, none is committed twice, no byte is torn."""

from collections import Counter
from dataclasses import asdict

from bench import chaos
from bench.chaos import FULL, SMALL, faults, orders
from bench.verdict import Record


def test_the_seed_decides_what_strikes_and_what_is_ordered() -> None:
    assert faults(FULL, 3000, 1) == faults(FULL, 3000, 1) != faults(FULL, 3000, 2)
    assert orders(50, 1) == orders(50, 1) != orders(50, 2)


def test_every_fault_of_the_dose_strikes_while_there_are_jobs() -> None:
    plan = faults(FULL, 3000, 0)
    assert Counter(fault.kind for fault in plan) == asdict(FULL)
    assert asdict(FULL) == {
        "worker": 100, "engine": 50, "client": 50, "ledger": 5, "broker": 2, "gateway": 20,
    }  # fmt: skip
    assert [fault.after for fault in plan] == sorted(fault.after for fault in plan)
    assert plan[-1].after < 2250


def test_recovery_is_from_the_kill_to_the_next_start() -> None:
    events = (("queued", 1000), ("started", 2000), ("requeued", 4000), ("started", 5500))
    records = {"v": Record("completed", "", events=events)}
    assert chaos._recovery([("local/v", 3.0), ("local/v", 6.0)], records) == [2.5]


def test_small() -> None:
    found = chaos.run(
        60, 0, SMALL, workers=3, threads=12, lease_s=3.0, max_attempts=10, redis_timeout_s=5.0
    )
    assert found["clean"], found
    assert found["jobs"] == 60
    assert found["struck"] == asdict(SMALL)
    assert found["executions"] <= 60 + found["unheard"] + found["faults"]
    assert found["recovery_s"]["count"] > 0
