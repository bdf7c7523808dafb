"""What a client's history and the ledger say of each other, as counts that must be nought.

    lost               an id that was accepted, and is unknown or has not ended
    duplicate_commits  a result that changed once it had been seen, or a second `completed` event
    torn               bytes that are not those of the key's digest, or differ between readers
    wrong              a picture that is not the one that was ordered
    disorder           an ended job that changed, progress that fell, an event out of order
    twice              jobs in excess of one per Idempotency-Key
    failed             ended badly without having been cancelled
    imbalance          scrapes at which submitted was not queued + running + ended
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
ENDS = ("completed", "failed", "cancelled")
# Which event may follow which.
AFTER = {
    "": {"queued"},
    "queued": {"started", "failed", "cancelled"},
    "started": {"progress", "resumed", "requeued", *ENDS},
    "resumed": {"progress", "requeued", *ENDS},
    "progress": {"progress", "resumed", "requeued", *ENDS},
    "requeued": {"started", "failed", "cancelled"},
}


@dataclass(frozen=True)
class Record:
    """What the ledger has of a job at the end. `events`: (kind, at_ms), oldest first."""

    state: str
    prompt: str
    key: str = ""  # of the video
    error: str = ""
    events: tuple[tuple[str, int], ...] = field(default=())

    @property
    def video(self) -> str:
        """The key's digest."""
        return self.key.rpartition("/")[2].partition(".")[0]

    @property
    def starts(self) -> int:
        """How often it was started."""
        return sum(kind == "started" for kind, _ in self.events)

    @property
    def orderly(self) -> bool:
        """Whether its events follow each other as they may, up to one end."""
        kinds = ["", *(kind for kind, _ in self.events)]
        return kinds[-1] in ENDS and all(
            then in AFTER.get(kind, set()) for kind, then in zip(kinds, kinds[1:], strict=False)
        )


def judge(history: Sequence[Event], records: Mapping[str, Record], faults: int) -> dict[str, Any]:
    """The counts. `records` by the client's id; `faults`: how many were inflicted."""
    accepted = [event for event in history if event["what"] == "accepted"]
    ids = {event["id"] for event in accepted}
    executions = sum(record.starts for record in records.values())
    failed = {id for id, record in records.items() if record.state == "failed"}
    cancelled = {event["id"] for event in history if event["what"] == "cancelled"}
    scrapes = [event for event in history if event["what"] == "scrape"]
    found = {
        "jobs": len(ids),
        "unheard": len(records.keys() - ids),
        "lost": sum(id not in records or records[id].state not in ENDS for id in ids),
        "duplicate_commits": _recommitted(history, records),
        "torn": _torn(history, records),
        "wrong": sum(event.get("right") is False for event in history),
        "disorder": _disorder(history, records),
        "twice": _twice(accepted, records),
        "failed": len(failed - cancelled),
        "errors": dict(Counter(records[id].error for id in failed)),
        "executions": executions,
        "faults": faults,
        "excess": max(executions - len(records) - faults, 0),
        "scrapes": len(scrapes),
        "imbalance": sum(not event["balanced"] for event in scrapes),
    }
    return found | {"balanced": bool(scrapes) and found["imbalance"] == 0}


FATAL = (
    "lost", "duplicate_commits", "torn", "wrong", "disorder", "twice", "failed", "excess",
    "imbalance",
)  # fmt: skip


def clean(found: Mapping[str, Any]) -> bool:
    """Whether every count that must be nought is."""
    return bool(found["balanced"]) and all(found[name] == 0 for name in FATAL)


def _readings(history: Sequence[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in history:
        if event["what"] in {"content", "late"}:
            found[event["id"]].append(event)
    return found


def _recommitted(history: Sequence[Event], records: Mapping[str, Record]) -> int:
    changed = {
        id for id, events in _readings(history).items() if len({e["etag"] for e in events}) > 1
    }
    twice = {
        id for id, record in records.items()
        if sum(kind == "completed" for kind, _ in record.events) > 1
    }  # fmt: skip
    return len(changed | twice)


def _torn(history: Sequence[Event], records: Mapping[str, Record]) -> int:
    return sum(
        event["status"] != 200
        or event["sha256"] != (event["etag"] or "").strip('"')
        or (id in records and event["sha256"] != records[id].video)
        for id, events in _readings(history).items()
        for event in events
    )


def _disorder(history: Sequence[Event], records: Mapping[str, Record]) -> int:
    polls: dict[str, list[Event]] = defaultdict(list)
    for event in history:
        if event["what"] == "poll":
            polls[event["id"]].append(event)
    bad = {id for id, seen in polls.items() if not _polled_well(seen, records.get(id))}
    return len(bad | {id for id, record in records.items() if not record.orderly})


def _polled_well(polls: Sequence[Event], record: Record | None) -> bool:
    """One client's polls of one job, in order."""
    last: Event = {"status": "queued", "progress": 0, "attempts": 0}
    for poll in polls:
        if poll["status"] not in {"queued", "in_progress", "completed", "failed"}:
            return False
        ended = last["status"] in ENDS
        back = (last["status"], poll["status"]) == ("in_progress", "queued")
        handed = record is not None and any(kind == "requeued" for kind, _ in record.events)
        if ended or poll["progress"] < last["progress"] or (back and not handed):
            return False
        last = poll
    return record is None or last["status"] not in ENDS or last["status"] == record.state


def _twice(accepted: Sequence[Event], records: Mapping[str, Record]) -> int:
    """Jobs that share an order which was sent with a key."""
    keyed = {event["order"] for event in accepted if event["key"]}
    made = Counter(order_of(record.prompt) for record in records.values())
    return sum(made[order] - 1 for order in keyed if made[order] > 1)


def order_of(prompt: str) -> int:
    """The number of the order (`bench.client.Order.prompt`)."""
    found = re.search(r"\border=(\d+)", prompt)
    return int(found[1]) if found else -1


def record_of(
    state: str, request: Mapping[str, Any], result: Mapping[str, Any], error: str,
    events: Sequence[tuple[str, Mapping[str, str]]],
) -> Record:  # fmt: skip
    """From what the ledger holds; `events` as `bench.stage.Stage.events` gives them."""
    kinds = tuple((one["kind"], int(json.loads(one["data"])["at_ms"])) for _, one in events)
    key = str(result.get("video", ""))
    return Record(state, request["spec"]["prompt"], key, error, kinds)
