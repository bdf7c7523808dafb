"""The small form of the experiment, with real gateways and a real ledger."""

from bench.idempotency import History, body_of, judge, run


def test_broken_connections_and_repeats_make_one_job_per_key() -> None:
    found = run(posts=240, keys=16, clients=8, seed=3)
    assert found["jobs"] == 16 and found["keys_with_two_jobs"] == 0
    assert (found["conflicts_missed"], found["unexpected"], found["orphans"]) == (0, {}, 0)
    assert found["cut"] > 60 and found["answered"] > 60 and found["conflicts"] > 0


def test_a_second_job_of_a_key_would_be_seen() -> None:
    seen = History()
    judge((202, {"id": "a"}), 1, False, seen)
    judge((202, {"id": "b"}), 1, False, seen)
    judge((202, {"id": "c"}), 1, True, seen)
    judge((500, {}), 1, False, seen)
    assert seen.ids[1] == {"a", "b"}
    assert seen.count["conflict_missed"] == seen.count["unexpected 500"] == 1


def test_a_keys_request_is_the_same_each_time() -> None:
    assert body_of(8) == body_of(8) != body_of(8, foreign=True)
