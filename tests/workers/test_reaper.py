"""What a death left behind is put right, and nothing is rung that nobody could answer."""

import time
from pathlib import Path

import pytest

from service.audit import Audit
from service.blobs import FolderBlobs
from service.errors import BlobError, BlobMissing
from service.exchange import Exchange, Offer
from service.fleet import Fleet
from service.jobs import Claim
from service.ledger import Ledger, connect
from service.limits import Limits
from service.roster import Roster, WorkerState
from tests.service.rig import request_of, wait_for
from workers import reaper as module
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
    def ring(ref: str) -> bool:
        rung.append(ref)
        return True

    def ring_encoder(ref: str) -> bool:
        asked.append(ref)
        return True

    client = connect(settings)
    exchange = Exchange(client, settings)
    limits, audit = Limits(client, settings, look_s=0.01), Audit(client, settings)
    return Reaper(ledger, roster, blobs, ring, settings, exchange, ring_encoder, limits, audit)


def test_a_dead_workers_job_is_queued_again_and_rung(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str]
) -> None:
    ledger.submit("local/a", request_of("anna"))
    assert isinstance(ledger.claim("h"), Claim)

    def look() -> bool:
        roster.announce(WorkerState("w", "idle"))
        reaper.round()
        return bool(rung)

    wait_for(look)
    assert rung == ["local/a"] and ledger.read("local/a").state == "queued"


def test_a_death_counts_once_for_a_job_against_what_it_was_to_be_made_with(
    reaper: Reaper, ledger: Ledger, settings: Settings
) -> None:
    """Under the machine of the worker; a start that said nothing of weights counts against none."""
    client = connect(settings)
    fleet = Fleet(client, settings)
    told = {"a": ("m1:7", "canary"), "b": ("m1:8", "canary"), "c": ("m2:7", "stable"), "d": None}
    for name, of in told.items():
        ledger.submit(f"local/{name}", request_of("anna"))
        worker, weights = of or ("m3:1", "")
        claim = ledger.claim(name, worker)
        assert claim is not None
        if weights:
            ledger.beat(claim, weights=weights)
    fleet.note("canary", False, 0.5)

    def again() -> bool:
        reaper.round()
        return all(ledger.read(f"local/{name}").state == "queued" for name in told)

    wait_for(again)
    found = fleet.outcomes("canary")
    assert (found.jobs, found.failed, found.died) == (3, 0, {"m1": 2})
    assert fleet.outcomes("stable").died == {"m2": 1}

    def taken() -> Claim | None:
        return ledger.claim("second", "m4:1")

    claim = wait_for(taken)  # a later start of one of them is lost too
    ledger.beat(claim, weights="canary")
    wait_for(lambda: reaper.round() or ledger.read(claim.ref).state == "queued")
    assert sum(fleet.outcomes("canary").died.values()) == (3 if claim.ref == "local/d" else 2)
    client.close()


def test_a_job_that_is_given_up_goes_on_from_nowhere(
    reaper: Reaper, ledger: Ledger, blobs: FolderBlobs
) -> None:
    ledger.submit("local/a", request_of("anna"))
    assert ledger.claim("h") is not None
    ledger.cancel("local/a")
    kept = [blobs.put(f"t/local/videos/a/{part}", b"x", ".bin").key for part in ("state", "in")]

    def ended() -> bool:
        reaper.round()
        return ledger.read("local/a").ended

    wait_for(ended)
    with pytest.raises(BlobMissing):
        blobs.size(kept[0])
    assert blobs.size(kept[1]) == 1


@pytest.mark.parametrize("states", [[], ["busy"], ["starting"], ["unhealthy"]])
def test_nobody_is_rung_for_who_cannot_answer(
    reaper: Reaper,
    ledger: Ledger,
    roster: Roster,
    rung: list[str],
    settings: Settings,
    states: list[str],
) -> None:
    ledger.submit("local/a", request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    for state in states:
        roster.announce(WorkerState(state, state))
    reaper.round()
    assert rung == []


def test_as_many_are_rung_as_stand_idle_the_oldest_first(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str], settings: Settings
) -> None:
    for name in "abc":
        ledger.submit(f"local/{name}", request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    roster.announce(WorkerState("w1", "idle"))
    roster.announce(WorkerState("w2", "idle"))
    reaper.round()
    assert rung == ["local/a", "local/b"]


def test_graves_are_swept_once_no_worker_can_be_writing(
    reaper: Reaper, ledger: Ledger, blobs: FolderBlobs, settings: Settings
) -> None:
    ledger.submit("local/a", request_of("anna"))
    ledger.delete("local/a")
    key = blobs.put("t/local/videos/a/1/out", b"late", ".mp4").key
    late = Path(blobs.url(key).removeprefix("file://"))
    reaper.round()
    assert late.exists()
    time.sleep(2 * settings.lease_s)
    reaper.round()
    assert not late.exists() and ledger.graves(0) == []


def test_a_sweep_that_fails_is_tried_again(
    reaper: Reaper, ledger: Ledger, blobs: FolderBlobs, settings: Settings
) -> None:
    ledger.submit("local/a", request_of("anna"))
    ledger.delete("local/a")
    time.sleep(2 * settings.lease_s)
    with pytest.MonkeyPatch.context() as patch:

        def refuse(prefix: str) -> None:
            raise BlobError("away")

        patch.setattr(blobs, "delete", refuse)
        reaper.round()
    assert ledger.graves(0) == ["local/a"]
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
    books = Limits(client, lost), Audit(client, lost)
    ledger, roster = Ledger(client, lost), Roster(client, lost)
    Reaper(ledger, roster, blobs, ring, lost, exchange, ring, *books).round()


def test_no_job_is_rung_for_a_worker_that_only_encodes(
    reaper: Reaper, ledger: Ledger, roster: Roster, rung: list[str], settings: Settings
) -> None:
    ledger.submit("local/a", request_of("anna"))
    time.sleep(settings.ring_after_s + 0.05)
    roster.announce(WorkerState("e", "idle", role="encode"))
    reaper.round()
    assert rung == []


def test_as_many_are_encoded_ahead_as_workers_will_need_it(
    reaper: Reaper, ledger: Ledger, roster: Roster, asked: list[str], settings: Settings
) -> None:
    for name in "abcd":
        ledger.submit(f"local/{name}", request_of("anna"))
    exchange = Exchange(connect(settings), settings)
    exchange.offer("local/a", Offer(key="k", digest="d"))
    for worker in ("w1", "w2", "w3"):
        roster.announce(WorkerState(worker, "busy", role="denoise", encoders="d"))
    reaper.round()
    assert asked == []  # nobody encodes
    roster.announce(WorkerState("e", "busy", role="encode", encoders="d"))
    roster.announce(WorkerState("f", "idle", role="encode", encoders="of another model"))
    reaper.round()
    assert asked == []  # nobody who could has the time
    roster.announce(WorkerState("e", "idle", role="encode", encoders="d"))
    reaper.round()
    assert asked == ["local/b", "local/c"]
    roster.announce(WorkerState("w1", "busy"))
    roster.announce(WorkerState("w2", "busy"))
    roster.announce(WorkerState("w3", "busy"))
    asked.clear()
    time.sleep(settings.ring_after_s + 0.05)
    reaper.round()
    assert asked == []  # all have encoders of their own


def test_quota_follows_what_jobs_took(
    reaper: Reaper, ledger: Ledger, settings: Settings
) -> None:
    limits = Limits(connect(settings), settings, look_s=0.01)
    limits.reserve("acme/a", "miniature", 9.0)
    ledger.submit("acme/a", request_of("anna"))
    limits.bind("acme/a")
    claim = ledger.claim("h")
    assert isinstance(claim, Claim)
    time.sleep(0.05)
    reaper.round()
    assert ledger.commit(claim, {}) == "ok"
    spent_ms = ledger.read("acme/a").number("spent_ms")
    quota = f"{settings.key_prefix}:quota:acme"

    def settled() -> bool:
        reaper.round()
        return connect(settings).hget(quota, "reserved") == "0"

    wait_for(settled)
    assert connect(settings).hget(quota, "settled") == str(spent_ms) and spent_ms >= 50


def test_what_was_kept_for_long_enough_is_deleted_with_a_receipt(
    reaper: Reaper, ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaper, "_retention_s", 0.05)
    ledger.submit("acme/a", request_of("anna"))
    ledger.submit("acme/b", request_of("anna"))
    ledger.cancel("acme/a")
    time.sleep(0.06)
    reaper.round()
    jobs, _ = ledger.page("acme", None, 10, newest_first=True)
    assert [job.id for job in jobs] == ["b"]
    (receipt,) = Audit(connect(settings), settings).entries(name="acme/a")
    assert (receipt.tenant, receipt.actor) == ("acme", "retention")


def test_what_was_deleted_leaves_the_ledgers_file_within_the_hour(
    reaper: Reaper, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(ledger, "compact", lambda: written.append(ledger.deletions()))
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    reaper._compacted_at = -module.COMPACT_EVERY_S
    reaper.round()
    reaper.round()
    assert written == [0]  # once at the start: nobody knows since when
    ledger.submit("local/a", request_of("anna"))
    ledger.delete("local/a")
    reaper.round()
    assert written == [0]
    now += module.COMPACT_EVERY_S
    reaper.round()
    reaper.round()
    assert written == [0, 1]
