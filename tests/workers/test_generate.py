"""One doorbell answered: how a job ends, and what stays of it, for each way it can go."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.errors import VideoError
from engine.registry import Registry
from service.blobs import get
from service.errors import BlobFull, LedgerDown
from service.fleet import Fleet, Outcomes
from service.jobs import Books, Claim
from service.ledger import Ledger
from tests.engine.test_swap import louder
from tests.service.rig import request_of, wait_for
from tests.workers.stage import place, submit
from workers import boot, generate, media, shelf
from workers.boot import Station
from workers.generate import answer, patiently
from workers.settings import Settings

__all__ = ["place"]
ROOT = Path(__file__).parents[2]


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
    assert answer(place) == "completed"
    job = ledger.read("local/v")
    assert (job.state, job.text("digest"), job.number("steps")) == ("completed", "scripted", 6)
    assert get(place.blobs, job.result["video"])[4:8] == b"ftyp"
    assert get(place.blobs, job.result["thumbnail"])[:2] == b"\xff\xd8"
    assert get(place.blobs, job.result["spritesheet"])[1:4] == b"PNG"
    stages = ("fetch", "encode", "denoise", "decode", "store")
    assert set(job.result["timings"]) == {f"{stage}_s" for stage in stages}
    assert job.result["attempt"] == 1
    assert job.result["forwards"] == {"asked": 12, "computed": 6}
    assert files(place) == {"in", "out"}


def test_the_same_request_gives_the_same_frames(place: Station) -> None:
    keys = []
    for name in ("v1", "v2"):
        submit(place, job_id=name)
        answer(place)
        keys.append(place.ledger.read(f"local/{name}").result["frames_sha256"])
    assert keys[0] == keys[1]


def test_what_is_not_there_to_be_worked_on_is_left(place: Station) -> None:
    assert answer(place) == "none"
    submit(place)
    held = place.ledger.claim("another")
    assert held is not None
    assert answer(place) == "none"
    place.ledger.commit(held, {})
    assert answer(place) == "none"


def test_without_an_engine_the_job_stays_queued(place: Station) -> None:
    submit(place)
    place.engine = None
    assert answer(place) == "unfit"
    assert place.ledger.read("local/v").state == "queued"


def test_cancel_stops_at_the_next_step(place: Station, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, lambda: ledger.cancel("local/v"))
    assert answer(place) == "cancel"
    job = ledger.read("local/v")
    assert (job.state, job.text("error_code")) == ("failed", "cancelled")
    assert place.engine.steps_made == 3  # type: ignore[union-attr]
    # Progress is told by a thread that may be behind when the word comes.
    assert job.number("step") <= 2
    assert files(place) == {"in"}


def test_delete_stops_it_and_leaves_nothing(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, lambda: ledger.delete("local/v"))
    assert answer(place) == "gone"
    assert files(place) == set() and ledger.graves(0) == []
    assert ledger.books() == Books(1, 0, 0, 0, 1)


def test_a_worker_that_lost_its_lease_leaves_the_heir_alone(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    heirs: list[Claim] = []

    def lose() -> None:
        assert wait_for(lambda: _reaped(place)) == ["local/v"]
        heirs.append(wait_for(lambda: _claimed(place)))

    at_step(place, monkeypatch, lose)
    assert answer(place) == "stale"
    assert ledger.commit(heirs[0], {"video": "the heir's"}) == "ok"
    assert ledger.read("local/v").result == {"video": "the heir's"}


def _reaped(place: Station) -> list[str]:
    """Again where a heartbeat came between."""
    place.ledger._redis.zadd(f"{place.settings.key_prefix}:running", {"local/v": 0})
    return place.ledger.reap()[0]


def _claimed(place: Station) -> Claim | None:
    return place.ledger.claim("heir")


def test_a_leaving_worker_hands_the_job_back(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(place)
    at_step(place, monkeypatch, place.leaving.set)
    assert answer(place) == "leave"
    job = ledger.read("local/v")
    assert (job.state, job.number("attempts")) == ("queued", 0)
    assert files(place) == {"in", "1-0-3"}  # where it stands


@pytest.mark.parametrize(("ago_s", "outcome"), [(0.0, "completed"), (60.0, "leave")])
def test_who_is_asked_to_end_has_a_while_to_finish(
    place: Station, monkeypatch: pytest.MonkeyPatch, ago_s: float, outcome: str
) -> None:
    """Longer than that, and the orchestrator would kill it with the job in hand."""
    ledger = submit(place)

    def ask() -> None:
        boot.tell_child()
        monkeypatch.setattr(boot.SHUT_AT, "value", time.monotonic() - ago_s)

    at_step(place, monkeypatch, ask)
    try:
        assert answer(place) == outcome
    finally:
        boot.SHUTTING_DOWN.clear()
    assert ledger.read("local/v").state == ("completed" if ago_s == 0 else "queued")


def test_a_request_that_cannot_be_is_not_tried_again(place: Station) -> None:
    submit(place, "@anna spec")
    assert answer(place) == "failed"
    job = place.ledger.read("local/v")
    assert (job.state, job.text("error_code")) == ("failed", "invalid_request")


def test_an_engine_that_fails_is_tried_again_and_then_told(place: Station) -> None:
    submit(place, "@anna oom")
    for attempt in (1, 2, 3):
        wait_for(lambda: place.ledger.read("local/v").number("not_before_ms") <= _now(place))
        assert answer(place) == ("again" if attempt < 3 else "failed")
        assert place.ledger.read("local/v").number("attempts") == attempt
    job = place.ledger.read("local/v")
    assert (job.state, job.text("error_code")) == ("failed", "engine_error")
    assert "MemoryError: the script says so" in (job.text("error_message") or "")
    assert files(place) == {"in"} and place.state.state == "idle"


def _now(place: Station) -> int:
    return place.ledger.read("local/v").now_ms


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
    monkeypatch.setattr(shelf, "PATIENCE_S", 0.0)
    submit(place)
    assert answer(place) == "again"
    assert place.ledger.read("local/v").state == "queued"
    for _ in range(2):
        place.shelf.look()
        wait_for(lambda: place.ledger.read("local/v").number("not_before_ms") <= _now(place))
        answer(place)
    assert place.ledger.read("local/v").text("error_code") == code


def test_a_store_that_is_away_at_the_start_costs_no_start(place: Station) -> None:
    submit(place)
    folder, aside = Path(place.settings.blobs_url), Path(f"{place.settings.blobs_url}-aside")
    folder.rename(aside)
    folder.write_text("in the way")

    def mend() -> None:
        wait_for(lambda: place.state.state == "unhealthy")
        folder.unlink()
        aside.rename(folder)

    thread = threading.Thread(target=mend)
    thread.start()
    assert answer(place) == "completed"
    thread.join()
    assert place.ledger.read("local/v").number("strikes") == 1 and place.state.state == "idle"


def test_who_knows_that_the_store_refuses_takes_nothing(place: Station) -> None:
    submit(place)
    place.shelf.refusal = "the store refuses: no room"
    assert answer(place) == "unfit" and not place._is_wanted()
    assert (place.state.state, place.state.message) == ("unhealthy", place.shelf.refusal)
    place.shelf.look()
    assert place._is_wanted() and answer(place) == "completed"


def test_a_missing_photo_ends_in_words(place: Station) -> None:
    submit(place)
    place.blobs.delete("t/local/videos/v/in")
    assert answer(place) == "again"


def test_a_ledger_that_is_away_leaves_the_job_to_the_reaper(
    place: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(place)
    monkeypatch.setattr(generate, "COMMIT_TRIES", 1)

    def away(*_: object) -> None:
        raise LedgerDown("away")

    monkeypatch.setattr(place.ledger, "commit", away)
    assert answer(place) == "adrift"
    assert place.ledger.read("local/v").state == "running"


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


def test_who_dies_of_a_canary_is_known_to_have_died_of_it(
    registry: Registry, settings: Settings, ledger: Ledger, fleet: Fleet, pushed
) -> None:
    """A process that is really killed while it takes over the weights: only the reaper can tell."""
    canary = pushed(louder)
    registry.channels.move("canary", canary, share=1.0)
    ledger.submit("local/v", request_of("anna"))
    given = {"redis_url", "key_prefix", "blobs_url", "lease_s"}
    env = {f"TROUPE_{name.upper()}": str(getattr(settings, name)) for name in given}
    env |= {"TROUPE_MODEL_DIR": f"{registry.store.url}#stable", "TROUPE_RUNTIME": "device=cpu"}
    command = [sys.executable, "-m", "tests.workers.dying_worker"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert fleet.outcomes(canary) == Outcomes()
    wait_for(lambda: ledger.reap()[0] == ["local/v"])
    assert fleet.outcomes(canary).died == {socket.gethostname(): 1}
