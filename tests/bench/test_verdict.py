"""The verdict finds each fault that it is there to find, and none where there is none."""

from typing import Any

import pytest

from bench.verdict import FATAL, Record, clean, judge, record_of

GOOD = ("queued", "started", "progress", "completed")
DIGEST = "ab" * 32


def record(*kinds: str, state: str = "completed", prompt: str = "order=1") -> Record:
    events = tuple((kind, at) for at, kind in enumerate(kinds))
    return Record(state, prompt, f"t/local/videos/v/1/out/{DIGEST}.mp4", "", events)


def poll(status: str, progress: int, at: int = 0) -> dict[str, Any]:
    return {"what": "poll", "id": "v", "status": status, "progress": progress, "attempts": 1}


def content(**changed: Any) -> dict[str, Any]:
    usual = {"status": 200, "etag": f'"{DIGEST}"', "sha256": DIGEST, "right": True}
    return {"what": "content", "id": "v", **usual, **changed}


ACCEPTED = {"what": "accepted", "order": 1, "id": "v", "key": "k"}
SCRAPE = {"what": "scrape", "balanced": True}
HISTORY = [ACCEPTED, poll("queued", 0), poll("completed", 100), content(), SCRAPE]


def test_a_good_history_is_clean() -> None:
    found = judge(HISTORY, {"v": record(*GOOD)}, faults=0)
    assert clean(found)
    assert (found["jobs"], found["executions"], found["scrapes"]) == (1, 1, 1)


def test_a_job_may_go_back_to_the_queue_for_each_fault() -> None:
    kinds = ("queued", "started", "requeued", "started", "resumed", "progress", "completed")
    polls = [poll("in_progress", 40), poll("queued", 40), poll("in_progress", 40)]
    found = judge([ACCEPTED, *polls, content(), SCRAPE], {"v": record(*kinds)}, faults=1)
    assert clean(found)
    assert judge(HISTORY, {"v": record(*kinds)}, faults=0)["excess"] == 1


@pytest.mark.parametrize(
    ("name", "events", "records"),
    [
        ("lost", [], {}),
        ("lost", [], {"v": record("queued", "started", state="running")}),
        ("duplicate_commits", [content(etag='"other"')], {"v": record(*GOOD)}),
        ("duplicate_commits", [], {"v": record(*GOOD, "completed")}),
        ("torn", [content(sha256="cut short")], {"v": record(*GOOD)}),
        ("torn", [content(status=404)], {"v": record(*GOOD)}),
        ("torn", [content(etag='"x"', sha256="x")], {"v": record(*GOOD)}),
        ("wrong", [content(right=False)], {"v": record(*GOOD)}),
        ("disorder", [poll("in_progress", 100)], {"v": record(*GOOD)}),
        ("disorder", [poll("404", -1)], {"v": record(*GOOD)}),
        ("disorder", [], {"v": record("queued", "completed")}),
        ("disorder", [], {"v": record(*GOOD, "started")}),
        ("disorder", [], {"v": record("queued", "started", "failed", state="failed")}),
        ("failed", [], {"v": record("queued", "started", "failed", state="failed")}),
        ("excess", [], {"v": record("queued", "started", "requeued", *GOOD[1:])}),
        ("imbalance", [{"what": "scrape", "balanced": False}], {"v": record(*GOOD)}),
    ],
)
def test_each_fault_is_found(
    name: str, events: list[dict[str, Any]], records: dict[str, Record]
) -> None:
    found = judge([*HISTORY, *events], records, faults=0)
    assert name in FATAL and found[name] > 0
    assert not clean(found)


def test_progress_that_falls_is_found() -> None:
    polls = [poll("in_progress", 40), poll("in_progress", 30)]
    assert judge([ACCEPTED, *polls], {"v": record(*GOOD)}, 0)["disorder"] == 1


def test_going_back_without_a_requeue_is_found() -> None:
    polls = [poll("in_progress", 40), poll("queued", 40)]
    assert judge([ACCEPTED, *polls], {"v": record(*GOOD)}, 0)["disorder"] == 1


def test_a_key_stands_for_one_job() -> None:
    records = {"v": record(*GOOD), "w": record(*GOOD)}
    assert judge(HISTORY, records, 0)["twice"] == 1
    assert judge([ACCEPTED | {"key": ""}], records, 0)["twice"] == 0


def test_a_cancelled_job_has_not_failed() -> None:
    ended = {"v": record("queued", "cancelled", state="failed")}
    history = [ACCEPTED, {"what": "cancelled", "id": "v", "status": 200}, SCRAPE]
    assert clean(judge(history, ended, 0))
    assert judge([ACCEPTED], ended, 0)["failed"] == 1


def test_books_that_nobody_read_do_not_balance() -> None:
    assert not clean(judge(HISTORY[:-1], {"v": record(*GOOD)}, 0))


def test_a_record_is_what_the_ledger_holds() -> None:
    key = f"t/local/videos/v/1/out/{DIGEST}.mp4"
    events = [("1-0", {"kind": "queued", "data": '{"at_ms": 7}'})]
    found = record_of("completed", {"spec": {"prompt": "order=3"}}, {"video": key}, "", events)
    assert (found.video, found.events, found.starts) == (DIGEST, (("queued", 7),), 0)
