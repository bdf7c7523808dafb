"""The audit chain over a real Redis: appended by many at once, and all tampering found."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import redis

from service.audit import FIRST, Audit, Entry, about, check
from service.auth import EVERYBODY
from service.errors import LedgerDown, RequestError
from service.ledger import connect
from workers.settings import Settings


@pytest.fixture
def audit(connection: redis.Redis, settings: Settings) -> Audit:
    return Audit(connection, settings)


def write(audit: Audit, count: int) -> list[str]:
    for number in range(count):
        audit.append("acme", "key0", "video.deleted", f"acme/video_{number}", {"blobs": number})
    return [json.dumps(asdict(entry)) for entry in audit.entries()]


def test_entries_follow_each_other(audit: Audit) -> None:
    assert audit.verify().entries == 0 and audit.head() == f"0:{FIRST}"
    write(audit, 3)
    first, second, third = audit.entries()
    assert [entry.seq for entry in (first, second, third)] == [1, 2, 3]
    assert (first.prev, second.prev, third.prev) == (FIRST, first.hash, second.hash)
    assert first.at_ms <= second.at_ms <= third.at_ms
    verdict = audit.verify()
    assert (verdict.entries, verdict.fault) == (3, "")
    assert verdict.head == audit.head() == f"3:{third.hash}"


def test_no_name_is_in_it_and_who_knows_one_finds_it(
    audit: Audit, connection: redis.Redis, settings: Settings
) -> None:
    texts = write(audit, 3)
    assert not any("video_" in text for text in texts)
    assert [entry.seq for entry in audit.entries(name="acme/video_1")] == [2]
    assert list(audit.entries(name="acme/video_9")) == []
    audit.append("zeta", "", "x", "y")
    assert [entry.seq for entry in audit.entries(tenant="zeta")] == [4]


def test_many_write_at_once_and_nothing_is_lost(
    connection: redis.Redis, settings: Settings
) -> None:
    chains = [Audit(connection, settings) for _ in range(8)]

    def some(number: int) -> None:
        for step in range(20):
            chains[number].append("acme", "", "x", f"{number}-{step}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(some, range(8)))
    assert chains[0].verify().fault == "" and chains[0].verify().entries == 160
    wanted = {about(f"{number}-{step}") for number in range(8) for step in range(20)}
    assert {entry.about for entry in chains[0].entries()} == wanted


def test_an_answer_that_got_lost_appends_nothing_twice(
    audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = audit._append
    monkeypatch.setattr(audit, "_append", lambda **given: (real(**given), real(**given))[1])
    write(audit, 2)
    assert audit.verify().entries == 2 and audit.verify().fault == ""


OTHER: dict[str, Any] = {"seq": 7, "at_ms": 1, "detail": {"blobs": 9}, "prev": "1" * 64}


@pytest.mark.parametrize("field", [field.name for field in fields(Entry)])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_any_field_of_any_entry_is_guarded(audit: Audit, field: str, place: int) -> None:
    texts = write(audit, 5)
    entry = json.loads(texts[place])
    altered = {**entry, field: OTHER.get(field, "f" * 64)}
    assert altered != entry
    texts[place] = json.dumps(altered)
    verdict = check(texts, audit.head())
    assert verdict.fault.startswith(f"entry {place + 1} ") and verdict.entries == place


def test_who_hashes_anew_is_found_at_the_next_entry_or_at_the_head(audit: Audit) -> None:
    for place in (1, 4):
        texts = write(audit, 5 - audit.verify().entries)
        entry = replace(Entry.from_json(texts[place]), tenant="other")
        texts[place] = json.dumps(asdict(replace(entry, hash=entry.digest())))
        fault = check(texts, audit.head()).fault
        assert "does not follow" in fault if place == 1 else "that the head names" in fault


@pytest.mark.parametrize(
    ("tamper", "fault"),
    [
        (lambda t: t[:2] + t[3:], "entry 3 is missing: 4 stands in its place"),
        (lambda t: t[1:], "entry 1 is missing"),
        (lambda t: [t[0], t[2], t[1], *t[3:]], "entry 2 is missing: 3 stands"),
        (lambda t: [*t[:2], t[1], *t[2:]], "entry 3 is missing: 2 stands"),
        (lambda t: t[:4], "entries after 4 are missing, there were 5"),
        (lambda t: [], "entries after 0 are missing"),
        (lambda t: [*t[:2], t[2][:-9], *t[3:]], "entry 3 cannot be read"),
        (lambda t: [*t[:2], "[]", *t[3:]], "entry 3 cannot be read"),
        (lambda t: [*t[:2], t[2].replace('{"seq"', '{"x": 1, "seq"'), *t[3:]], "entry 3 cannot"),
    ],
)
def test_cut_moved_doubled_and_spoilt_entries_are_found(
    audit: Audit, tamper: Callable[[list[str]], list[str]], fault: str
) -> None:
    assert check(tamper(write(audit, 5)), audit.head()).fault.startswith(fault)


def test_tampering_in_redis_is_found(
    audit: Audit, connection: redis.Redis, settings: Settings
) -> None:
    write(audit, 3)
    key = f"{settings.key_prefix}:audit"
    text = str(connection.lindex(key, 1))
    connection.lset(key, 1, text.replace('"blobs": 1', '"blobs": 0'))
    assert audit.verify().fault == "entry 2 was altered"


def test_an_end_cut_off_with_its_head_shows_only_against_a_head_kept_elsewhere(
    audit: Audit, connection: redis.Redis, settings: Settings
) -> None:
    write(audit, 5)
    early, kept = f"2:{list(audit.entries())[1].hash}", audit.head()
    connection.rpop(f"{settings.key_prefix}:audit", 2)
    shorter = list(audit.entries())[-1]
    connection.hset(f"{settings.key_prefix}:audit:head", items=["seq", "3", "hash", shorter.hash])
    assert audit.verify().fault == ""
    assert audit.verify(kept).fault == "entries after 3 are missing, there were 5"
    assert audit.verify(early).fault == ""
    # Written on since: as long as before, and yet another history.
    write(audit, 2)
    assert audit.verify().fault == "" and "that was kept" in audit.verify(kept).fault


def test_consent_is_an_entry(audit: Audit) -> None:
    audit.attest(EVERYBODY, "local/subj_1", "Anna", "consent", "signed on paper")
    (entry,) = audit.entries(name="local/subj_1")
    assert entry.action == "subject.consent" and entry.tenant == "local"
    assert entry.detail == {"who": "Anna", "basis": "consent", "text": "signed on paper"}
    for who, basis, text in (("A", "none", ""), ("", "self", ""), ("A", "self", "x" * 501)):
        with pytest.raises(RequestError, match="consent") as caught:
            audit.attest(EVERYBODY, "s", who, basis, text)
        assert caught.value.param == "consent"


def test_a_head_that_is_none_is_refused(audit: Audit) -> None:
    with pytest.raises(RequestError, match="is not SEQ:HASH"):
        audit.verify("5")


def test_without_redis_it_fails_clearly(settings: Settings) -> None:
    lost = settings.model_copy(update={"redis_url": "unix:///nowhere"})
    with pytest.raises(LedgerDown):
        Audit(connect(lost), lost).append("acme", "", "x", "y")
