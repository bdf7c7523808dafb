"""A job in hand: what the record shows of it, and how it hears that it should stop."""

import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from bench.scripted import Progress
from engine.errors import Cancelled
from service.errors import BlobError, LedgerDown
from service.jobs import Claim
from tests.service.rig import wait_for
from tests.workers.stage import place, submit
from workers.boot import Station
from workers.work import SPANS, STORE_AT, Work

__all__ = ["place"]


@pytest.fixture
def work(place: Station) -> Work:
    claim = submit(place).claim("h")
    assert isinstance(claim, Claim)
    found = Work(claim, place)
    found.begin("d1", made=0, wanted=1)
    return found


def tell(work: Work, stage: str, step: int, preview: bytes | None = None) -> None:
    work.on_progress(Progress(stage, step, 10, preview))  # type: ignore[arg-type]


def test_the_stages_cover_the_whole_in_order() -> None:
    bounds = [bound for span in SPANS.values() for bound in span]
    assert bounds == sorted(bounds) and bounds[0] == 0.0 and bounds[-1] == STORE_AT < 1


def test_progress_is_the_engines_own(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work._telling, "due", lambda: True)
    seen = []
    stages = ("encode", 0), ("denoise", 0), ("denoise", 5), ("decode", 0), ("decode", 5)
    for stage, step in stages:
        tell(work, stage, step)
        job = place.ledger.read("local/v")
        seen.append((job.text("stage"), job.number("progress"), job.number("step")))
    assert seen == [
        ("encode", 0, 0),
        ("denoise", 5, 0),
        ("denoise", 47, 5),
        ("decode", 90, 5),
        ("decode", 93, 5),
    ]
    assert job.text("digest") == "d1"


def test_the_latest_preview_is_shown(place: Station, work: Work) -> None:
    tell(work, "denoise", 1, b"one")
    tell(work, "denoise", 2)
    key = place.ledger.read("local/v").text("preview")
    assert key and b"".join(place.blobs.read(key)) == b"one"


def test_a_preview_that_cannot_be_kept_costs_nothing(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise BlobError("full")

    monkeypatch.setattr(place.blobs, "put", refuse)
    tell(work, "denoise", 1, b"one")
    assert place.ledger.read("local/v").number("step") == 1


def test_a_long_stage_keeps_its_lease(place: Station, work: Work) -> None:
    with work.leased():
        time.sleep(2 * place.settings.lease_s)
        assert place.ledger.reap() == ([], [])


def test_a_cancel_during_a_long_stage_is_heard_at_its_end(place: Station, work: Work) -> None:
    with work.leased():
        place.ledger.cancel("local/v")
        time.sleep(place.settings.lease_s)
        assert work.stopped == "cancel"
        with pytest.raises(Cancelled):
            tell(work, "decode", 10)


def test_a_gap_in_the_ledger_does_not_stop_the_work(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise LedgerDown("away")

    with monkeypatch.context() as patch:
        patch.setattr(place.ledger, "beat", away)
        tell(work, "denoise", 3)
    monkeypatch.setattr(work._telling, "due", lambda: True)
    tell(work, "denoise", 4)
    assert place.ledger.read("local/v").number("step") == 4


def test_the_work_does_not_wait_for_what_it_tells(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work._telling, "due", lambda: True)
    beat, answering, told = place.ledger.beat, threading.Event(), []

    def slow(*args: Any, **fields: Any) -> str:
        told.append(fields)
        assert answering.wait(60)
        return beat(*args, **fields)

    with work.leased():
        monkeypatch.setattr(place.ledger, "beat", slow)
        tell(work, "denoise", 1)
        wait_for(lambda: told)
        for step in (2, 3, 4):
            tell(work, "denoise", step)  # would wait for ever
        answering.set()
        wait_for(lambda: place.ledger.read("local/v").number("step") == 4)
        assert [fields["step"] for fields in told if "step" in fields] == [1, 4]


def test_what_is_written_down_comes_after_what_was_told_before(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is never first here: what it was to tell goes with the save."""
    with work.leased():
        with work._sending:
            tell(work, "denoise", 1)
            tell(work, "decode", 1)
            saving = threading.Thread(target=lambda: work.note("record", made=1, steps=10))
            saving.start()
        saving.join()
        job = place.ledger.read("local/v")
        assert (job.text("saved"), job.number("step")) == ("record", 1)
        tell(work, "denoise", 1)
    assert place.ledger.read("local/v").number("saved_step") == 10


def test_a_stop_that_the_thread_hears_ends_the_next_step(place: Station, work: Work) -> None:
    with work.leased():
        place.ledger.cancel("local/v")
        work._wake.set()
        wait_for(lambda: work.stopped)
        with pytest.raises(Cancelled):
            tell(work, "decode", 1)


def test_clocks_run_per_stage(work: Work) -> None:
    tell(work, "denoise", 0)
    time.sleep(0.02)
    tell(work, "decode", 10)
    work.enter("store")
    assert work.timings["denoise_s"] >= 0.02
    assert set(work.timings) == {"encode_s", "denoise_s", "decode_s"}


def test_between_two_tellings_a_step_writes_nothing_and_still_hears_a_cancel(
    place: Station, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work._telling, "due", lambda: False)
    tell(work, "denoise", 1)  # the first of a stage is told at once
    before = place.ledger.read("local/v")
    tell(work, "denoise", 2)
    after = place.ledger.read("local/v")
    assert replace(after, now_ms=before.now_ms) == before and before.number("step") == 1
    tell(work, "denoise", 3, b"a preview is told at once")
    assert place.ledger.read("local/v").number("step") == 3
    place.ledger.cancel("local/v")
    with pytest.raises(Cancelled):
        tell(work, "denoise", 4)
    assert work.stopped == "cancel"


def test_progress_is_told_within_half_a_second(place: Station, work: Work) -> None:
    work._telling._cost_s = 1000.0
    tell(work, "denoise", 1)
    work._telling._cost_s = 1000.0
    tell(work, "denoise", 2)
    assert place.ledger.read("local/v").number("step") == 1
    time.sleep(0.6)
    tell(work, "denoise", 3)
    assert place.ledger.read("local/v").number("step") == 3
