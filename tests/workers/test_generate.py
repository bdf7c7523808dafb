"""One doorbell answered: how a job ends, and what stays of it, for each way it can go."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import VideoError
from service.blobs import get
from service.errors import BlobFull, LedgerDown
from service.ledger import Books, Claim
from tests.service.rig import wait_for
from tests.workers.stage import place, submit
from workers import generate, media
from workers.boot import Station
from workers.generate import answer, patiently

__all__ = ["place"]


def files(place: Station) -> set[str]:
    folder = Path(place.settings.blobs_url)
    return {path.relative_to(folder).parts[-2] for path in folder.rglob("*") if path.is_file()}


def at_step(place: Station, monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> None:
    """Do something while the engine is at its third step."""
    assert place.engine is not None
    inner = place.engine._act  # type: ignore[attr-defined]

    def meddled(spec: Any, step: int) -> None:
        if step == 3:
            act()
        inner(spec, step)

    monkeypatch.setattr(place.engine, "_act", meddled)


def test_a_job_ends_with_its_video_stored_and_its_previews_gone(place: Station) -> None:
    ledger = submit(place)
    assert answer("v", place) == "completed"
    job = ledger.read("v")
    assert (job.state, job.text("digest"), job.number("steps")) == ("completed", "scripted", 6)
    assert get(place.blobs, job.result["video"])[4:8] == b"ftyp"
    assert get(place.blobs, job.result["thumbnail"])[:2] == b"\xff\xd8"
    assert get(place.blobs, job.result["spritesheet"])[1:4] == b"PNG"
    assert set(job.result["timings"]) == {"encode_s", "denoise_s", "decode_s", "store_s"}
    assert job.result["attempt"] == 1
    assert job.result["forwards"] == {"asked": 12, "computed": 6}
    assert files(place) == {"in", "out"}


def test_the_same_job_gives_the_same_bytes(place: Station) -> None:
    keys = []
    for name in ("v1", "v2"):
        submit(place, job_id=name)
        answer(name, place)
        keys.append(place.ledger.read(name).result["video"].rsplit("/", 1)[1])
    assert keys[0] == keys[1]


def test_what_is_not_there_to_be_worked_on_is_left(place: Station) -> None:
    assert answer("nobody", place) == "gone"
    submit(place)
    held = place.ledger.claim("v", "another")
    assert isinstance(held, Claim)
    assert answer("v", place) == "held"
    place.ledger.commit(held, {})
    assert answer("v", place) == "ended"


def test_without_an_engine_the_job_stays_queued(place: Station) -> None:
    submit(place)
    place.engine = None
    assert answer("v", place) == "unfit"
    assert place.ledger.read("v").state == "queued"


def test_cancel_stops_at_the_next_step(place: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, lambda: ledger.cancel("v"))
    assert answer("v", place) == "cancel"
    job = ledger.read("v")
    assert (job.state, job.text("error_code"), job.number("step")) == ("failed", "cancelled", 2)
    assert files(place) == {"in"}


def test_delete_stops_it_and_leaves_nothing(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, lambda: ledger.delete("v"))
    assert answer("v", place) == "gone"
    assert files(place) == set() and ledger.graves(0) == []
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_a_worker_that_lost_its_lease_leaves_the_heir_alone(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    heirs: list[Claim] = []

    def lose() -> None:
        place.ledger._redis.zadd(f"{place.settings.key_prefix}:running", {"v": 0})
        assert ledger.reap() == (["v"], [])
        heirs.append(wait_for(lambda: _claimed(place)))

    at_step(place, monkeypatch, lose)
    assert answer("v", place) == "stale"
    assert ledger.commit(heirs[0], {"video": "the heir's"}) == "ok"
    assert ledger.read("v").result == {"video": "the heir's"}


def _claimed(place: Station) -> Claim | None:
    found = place.ledger.claim("v", "heir")
    return found if isinstance(found, Claim) else None


def test_a_leaving_worker_hands_the_job_back(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, place.leaving.set)
    assert answer("v", place) == "leave"
    job = ledger.read("v")
    assert (job.state, job.number("attempts")) == ("queued", 0)
    assert files(place) == {"in"}


def test_a_request_that_cannot_be_is_not_tried_again(place: Station) -> None:
    submit(place, "@anna spec")
    assert answer("v", place) == "failed"
    job = place.ledger.read("v")
    assert (job.state, job.text("error_code")) == ("failed", "invalid_request")


def test_an_engine_that_fails_is_tried_again_and_then_told(place: Station) -> None:
    submit(place, "@anna oom")
    for attempt in (1, 2, 3):
        wait_for(lambda: place.ledger.read("v").number("not_before_ms") <= _now(place))
        with pytest.raises(MemoryError):
            answer("v", place)
        assert place.ledger.read("v").number("attempts") == attempt
    job = place.ledger.read("v")
    assert (job.state, job.text("error_code")) == ("failed", "engine_error")
    assert "MemoryError: the script says so" in (job.text("error_message") or "")
    assert files(place) == {"in"} and place.state.state == "idle"


def _now(place: Station) -> int:
    return place.ledger.read("v").now_ms


@pytest.mark.parametrize(
    ("error", "code"),
    [(BlobFull("full"), "storage_full"), (VideoError("no codec"), "generation_failed")],
)
def test_trouble_at_the_end_is_tried_again(
    place: Station, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(media, "render", refuse)
    submit(place)
    assert answer("v", place) == "again"
    assert place.ledger.read("v").state == "queued"
    for _ in range(2):
        wait_for(lambda: place.ledger.read("v").number("not_before_ms") <= _now(place))
        answer("v", place)
    assert place.ledger.read("v").text("error_code") == code


def test_a_missing_photo_ends_in_words(place: Station) -> None:
    submit(place)
    place.blobs.delete("videos/v/in")
    assert answer("v", place) == "again"


def test_a_ledger_that_is_away_leaves_the_job_to_the_reaper(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(place)
    monkeypatch.setattr(generate, "COMMIT_TRIES", 1)

    def away(*_: object) -> None:
        raise LedgerDown("away")

    monkeypatch.setattr(place.ledger, "commit", away)
    assert answer("v", place) == "adrift"
    assert place.ledger.read("v").state == "running"


def test_a_commit_is_tried_until_the_ledger_is_back() -> None:
    waits: list[float] = []
    answers = iter([LedgerDown("1"), LedgerDown("2"), "ok"])

    def act() -> str:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert patiently(act, threading.Event(), waits.append) == "ok"
    assert waits == [0.5, 1.0]


def test_a_leaving_worker_does_not_wait() -> None:
    leaving = threading.Event()
    leaving.set()

    def act() -> str:
        raise LedgerDown("away")

    with pytest.raises(LedgerDown):
        patiently(act, leaving)
