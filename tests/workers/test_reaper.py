"""What a death left behind is put right, and nothing is rung that nobody could answer."""

import time
from pathlib import Path

import pytest

from service.blobs import FolderBlobs
from service.errors import BlobError
from service.exchange import Exchange, Offer
from service.ledger import Claim, Ledger, connect
from service.roster import Roster, WorkerState
from tests.service.rig import request_of, wait_for
from workers.reaper import Reaper
from workers.settings import Settings


@pytest.fixture
def rung() -> list[str]:
    return []


@pytest.fixture
def asked() -> list[str]:
    """The jobs for which workers that encode were rung."""
    return []


@pytest.fixture
def reaper(
    ledger: Ledger,
    roster: Roster,
    blobs: FolderBlobs,
    rung: list[str],
    asked: list[str],
    settings: Settings,
) -> Reaper:
    def ring(job_id: str) -> bool:
        rung.append(job_id)
        return True

    def ring_encoder(job_id: str) -> bool:
        asked.append(job_id)
        return True

    exchange = Exchange(connect(settings), settings)
    return Reaper(ledger, roster, blobs, ring, settings, exchange, ring_encoder)


def test_a_dead_workers_job_is_queued_again_and_rung(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str]
) -> None:
    ledger.submit("a", request_of("anna"))
    assert isinstance(ledger.claim("a", "h"), Claim)

    def look() -> bool:
        roster.announce(WorkerState("w", "idle"))
        reaper.round()
        return bool(rung)

    wait_for(look)
    assert rung == ["a"] and ledger.read("a").state == "queued"


@pytest.mark.parametrize("states", [[], ["busy"], ["starting"], ["unhealthy"]])
def test_nobody_is_rung_for_who_cannot_answer(
    reaper: Reaper,
    ledger: Ledger,
    roster: Roster,
    rung: list[str],
    settings: Settings,
    states: list[str],
) -> None:
    ledger.submit("a", request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    for state in states:
        roster.announce(WorkerState(state, state))
    reaper.round()
    assert rung == []


def test_as_many_are_rung_as_stand_idle_the_oldest_first(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str], settings: Settings
) -> None:
    for name in "abc":
        ledger.submit(name, request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    roster.announce(WorkerState("w1", "idle"))
    roster.announce(WorkerState("w2", "idle"))
    reaper.round()
    assert rung == ["a", "b"]


def test_graves_are_swept_once_no_worker_can_be_writing(
    reaper: Reaper, ledger: Ledger, blobs: FolderBlobs, settings: Settings
) -> None:
    ledger.submit("a", request_of("anna"))
    ledger.delete("a")
    late = Path(blobs.url(blobs.put("videos/a/1/out", b"late", ".mp4").key).removeprefix("file://"))
    reaper.round()
    assert late.exists()
    time.sleep(2 * settings.lease_s)
    reaper.round()
    assert not late.exists() and ledger.graves(0) == []


def test_a_sweep_that_fails_is_tried_again(
    reaper: Reaper, ledger: Ledger, blobs: FolderBlobs, settings: Settings
) -> None:
    ledger.submit("a", request_of("anna"))
    ledger.delete("a")
    time.sleep(2 * settings.lease_s)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(prefix: str) -> None:
            raise BlobError("away")

        patch.setattr(blobs, "delete", refuse)
        reaper.round()
    assert ledger.graves(0) == ["a"]
    reaper.round()
    assert ledger.graves(0) == []


def test_without_redis_a_round_raises_nothing(
    settings: Settings, tmp_path: Path, blobs: FolderBlobs
) -> None:
    from service.ledger import connect

    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    client = connect(lost)
    exchange = Exchange(client, lost)
    ring = bool
    Reaper(Ledger(client, lost), Roster(client, lost), blobs, ring, lost, exchange, ring).round()


def test_no_job_is_rung_for_a_worker_that_only_encodes(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str], settings: Settings
) -> None:
    ledger.submit("a", request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    roster.announce(WorkerState("e", "idle", role="encode"))
    reaper.round()
    assert rung == []


def test_as_many_are_encoded_ahead_as_workers_will_need_it(
    reaper: Reaper, ledger: Ledger, roster: Roster, asked: list[str], settings: Settings
) -> None:
    for name in "abcd":
        ledger.submit(name, request_of("anna"))
    exchange = Exchange(connect(settings), settings)
    exchange.offer("a", Offer(key="k", digest="d"))
    for worker in ("w1", "w2", "w3"):
        roster.announce(WorkerState(worker, "busy", role="denoise", digest="d"))
    reaper.round()
    assert asked == []  # nobody encodes
    roster.announce(WorkerState("e", "busy", role="encode", digest="d"))
    roster.announce(WorkerState("f", "idle", role="encode", digest="of another model"))
    reaper.round()
    assert asked == []  # nobody who could has the time
    roster.announce(WorkerState("e", "idle", role="encode", digest="d"))
    reaper.round()
    assert asked == ["b", "c"]
    roster.announce(WorkerState("w1", "busy"))
    roster.announce(WorkerState("w2", "busy"))
    roster.announce(WorkerState("w3", "busy"))
    asked.clear()
    time.sleep(settings.ring_after_s + 0.05)
    reaper.round()
    assert asked == []  # all have encoders of their own
