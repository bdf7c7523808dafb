"""Encodings from another worker: asked for, made once, handed over, and nothing left of them."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.encoder import Encoder, from_bytes, to_bytes
from engine.errors import Cancelled, EncodingError, SpecError
from engine.runtime import Runtime
from engine.spec import Spec
from service.blobs import get
from service.errors import BlobFull, LedgerDown
from service.exchange import Offer
from service.ledger import connect
from service.roster import Roster, WorkerState
from tests.service.rig import keys_of, wait_for
from tests.workers.scripted import ScriptedEngine
from tests.workers.stage import submit
from workers import encode, generate
from workers.boot import Station
from workers.encode import answer, encodings_of
from workers.settings import Settings
from workers.work import fetch


@pytest.fixture(scope="module")
def encoder(random_model: Path) -> Encoder:
    return Encoder.load(random_model, runtime=Runtime(device="cpu", encoders="only"))


def station_of(settings: Settings, runtime: str) -> Station:
    return Station(settings.model_copy(update={"runtime": runtime}))


@pytest.fixture
def desk(settings: Settings, encoder: Encoder) -> Iterator[Station]:
    """The worker that encodes."""
    found = station_of(settings, "encoders=only")
    found.encoder = encoder
    yield found
    found.ledger.close()


@pytest.fixture
def card(settings: Settings, tmp_path: Path) -> Iterator[Station]:
    """The worker that denoises. Whom it rings for is in `rung`."""
    found = station_of(settings, "encoders=remote")
    found.engine = ScriptedEngine(folder=tmp_path)  # type: ignore[assignment]
    found.rung = []  # type: ignore[attr-defined]
    found.ring_encoder = found.rung.append  # type: ignore[attr-defined,method-assign]
    yield found
    found.ledger.close()


def files(place: Station) -> list[Path]:
    return sorted(Path(place.settings.blobs_url).rglob("encodings/*"))


def expected(place: Station, encoder: Encoder, job_id: str = "v") -> bytes:
    request = place.ledger.read(f"local/{job_id}").request
    references = [fetch(place, one) for one in request["references"]]
    return to_bytes(encoder.encode(Spec.from_json(request["spec"]), references))


def failing(error: Exception) -> Callable[..., None]:
    """What raises it whenever it is called."""

    def fail(*_: object) -> None:
        raise error

    return fail


def quietly() -> None:
    """Nobody wants the waiting to end."""


def test_encodings_are_stored_with_the_job_and_offered(desk: Station, encoder: Encoder) -> None:
    submit(desk)
    assert answer("local/v", desk) == "encoded"
    offer = desk.exchange.find("local/v")
    assert offer is not None and offer.digest == encoder.digest and not offer.error
    assert offer.key.startswith("t/local/videos/v/encodings/")
    assert get(desk.blobs, offer.key) == expected(desk, encoder)
    assert answer("local/v", desk) == "nothing to do"


def test_only_what_is_still_wanted_is_encoded(desk: Station) -> None:
    assert answer("local/nobody", desk) == "gone"
    submit(desk).cancel("local/v")
    assert answer("local/v", desk) == "gone"
    assert files(desk) == []


def test_a_worker_without_encoders_takes_nothing(card: Station) -> None:
    submit(card)
    assert "no encoders" in answer("local/v", card)
    assert card.exchange.begin("local/v")


def test_who_needs_them_rings_waits_and_gets_them(
    desk: Station, card: Station, encoder: Encoder
) -> None:
    submit(card)
    told: list[int] = []

    def tell() -> None:
        told.append(1)
        if len(told) == 3:
            threading.Thread(target=answer, args=("local/v", desk)).start()

    found = encodings_of("local/v", card, encoder.digest, tell)
    assert to_bytes(found) == expected(card, encoder)
    assert card.rung[0] == "local/v" and len(told) > 3  # type: ignore[attr-defined]


def test_a_job_is_made_with_them_and_they_go(
    desk: Station, card: Station, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(card)
    answer("local/v", desk)
    wanted = expected(card, encoder)
    engine: Any = card.engine
    engine.digest = encoder.digest
    given: list[bytes] = []
    plain = engine.generate

    def watched(*asked: Any, encoded: Any, **about: Any) -> Any:
        given.append(to_bytes(encoded))
        assert files(card)
        return plain(*asked, **about)

    monkeypatch.setattr(engine, "generate", watched)
    assert generate.answer(card) == "completed"
    assert given == [wanted]
    assert files(card) == [] and card.exchange.find("local/v") is None


def test_a_cancelled_job_ends_while_it_waits(card: Station) -> None:
    submit(card)
    thread = threading.Thread(target=generate.answer, args=(card,))
    thread.start()
    wait_for(lambda: card.ledger.read("local/v").state == "running")
    assert card.ledger.cancel("local/v")
    thread.join(60)
    job = card.ledger.read("local/v")
    assert (job.state, job.text("error_code")) == ("failed", "cancelled")


def test_waiting_ends_when_it_is_told_to(card: Station) -> None:
    submit(card)

    def stop() -> None:
        raise Cancelled("leave")

    with pytest.raises(Cancelled):
        encodings_of("local/v", card, "d", stop)


def test_nobody_who_encodes_is_an_error_that_says_so(card: Station) -> None:
    submit(card)
    with pytest.raises(EncodingError, match=r"0\.3 s: no worker that encodes"):
        encodings_of("local/v", card, "d", quietly, limit_s=0.3)


def test_a_request_that_cannot_be_encoded_is_the_clients_fault(
    desk: Station, card: Station
) -> None:
    submit(desk, prompt="and " * 300 + "@anna waves")
    assert answer("local/v", desk) == "refused"  # for the log, which tells nothing of a prompt
    with pytest.raises(SpecError, match="prompt: is too long: @anna first comes after"):
        encodings_of("local/v", card, "d", quietly)
    card.ledger.cancel("local/v")
    submit(desk, prompt="and " * 300 + "@anna waves", job_id="w")
    answer("local/w", desk)
    generate.answer(card)
    job = card.ledger.read("local/w")
    assert (job.state, job.text("error_code")) == ("failed", "invalid_request")


def test_a_failure_of_the_encoders_is_told_and_tried_again(
    desk: Station, card: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(desk)
    with monkeypatch.context() as broken:
        broken.setattr(desk.encoder, "encode", failing(MemoryError("no room")))
        assert answer("local/v", desk) == "MemoryError: no room"
    with pytest.raises(EncodingError, match="worker that encodes failed: MemoryError: no room"):
        encodings_of("local/v", card, "d", quietly)
    assert answer("local/v", desk) == "encoded"


def test_encodings_of_other_weights_or_damaged_ones_are_made_again(
    desk: Station, card: Station, encoder: Encoder
) -> None:
    submit(desk)
    for offer in (
        Offer(key="t/local/videos/v/encodings/none.safetensors", digest=encoder.digest),
        Offer(key=card.blobs.put("t/local/videos/v/encodings", b"x", ".safetensors").key,
              digest=encoder.digest),
    ):  # fmt: skip
        card.exchange.offer("local/v", offer)
        with pytest.raises(EncodingError, match=r"not there|no encodings"):
            encodings_of("local/v", card, encoder.digest, quietly, limit_s=0.01)
        assert card.exchange.find("local/v") is None
    answer("local/v", desk)
    with pytest.raises(EncodingError, match=f"other weights .{encoder.digest}, not another"):
        encodings_of("local/v", card, "another", quietly, limit_s=0.01)
    assert card.rung  # type: ignore[attr-defined]
    card.rung.clear()  # type: ignore[attr-defined]
    roster = Roster(connect(card.settings), card.settings.model_copy(update={"lease_s": 600.0}))
    roster.announce(WorkerState("e", "idle", encoders="old", role="encode"))
    with pytest.raises(EncodingError, match=r"other weights .*old, not another"):
        encodings_of("local/v", card, "another", quietly, limit_s=0.01)
    assert card.rung == []  # type: ignore[attr-defined]  # it would make them in vain
    roster.leave("e")
    answer("local/v", desk)
    found = to_bytes(encodings_of("local/v", card, encoder.digest, quietly))
    assert found == expected(card, encoder)


def test_what_cannot_be_handed_over_is_not_left_behind(
    desk: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its job may be deleted meanwhile, and then nobody would look here again."""
    submit(desk)
    with monkeypatch.context() as cut:
        cut.setattr(desk.exchange, "offer", failing(LedgerDown("the test says so")))
        assert answer("local/v", desk) == "not handed over: the test says so"
    assert files(desk) == []
    assert answer("local/v", desk) == "encoded"


def test_an_encoder_that_was_killed_leaves_nothing_of_a_deleted_job(desk: Station) -> None:
    """Its doorbell comes again."""
    ledger = submit(desk)
    desk.blobs.put("t/local/videos/v/encodings", b"half done", ".safetensors")
    ledger.delete("local/v")
    assert answer("local/v", desk) == "gone"
    assert files(desk) == []


def test_a_store_that_fails_here_is_no_answer_to_who_waits(
    desk: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(desk)
    with monkeypatch.context() as broken:
        broken.setattr(desk.blobs, "put", failing(BlobFull("no room")))
        assert answer("local/v", desk) == "not handed over: no room"
    assert desk.exchange.find("local/v") is None and desk.exchange.begin("local/v")


def test_an_old_failure_is_not_held_against_a_job(desk: Station, card: Station) -> None:
    """An encoder that failed on a job in the queue may be gone when the job is started."""
    submit(desk)
    desk.exchange.offer("local/v", Offer(error="MemoryError: no room"))
    wait_for(lambda: card.exchange.find("local/v") is None)


def test_nothing_is_left_of_a_job_that_is_deleted_while_it_is_encoded(
    desk: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = submit(desk)
    make = encode._encode

    def slow(*given: Any) -> Offer:
        found = make(*given)
        ledger.delete("local/v")
        return found

    monkeypatch.setattr(encode, "_encode", slow)
    answer("local/v", desk)
    assert files(desk) == []
    assert not [key for key in keys_of(desk.settings) if "encoded" in key]


def test_what_takes_longer_than_a_lease_is_not_begun_twice(
    desk: Station, card: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(desk)
    make, begun, over = encode._encode, threading.Event(), threading.Event()

    def slow(*given: Any) -> Offer:
        begun.set()
        assert over.wait(60)
        return make(*given)

    monkeypatch.setattr(encode, "_encode", slow)
    thread = threading.Thread(target=answer, args=("local/v", desk))
    thread.start()
    assert begun.wait(60)
    assert not begun_again(card, seconds=2.5 * desk.settings.lease_s)
    over.set()
    thread.join(60)
    assert card.exchange.find("local/v") is not None


def begun_again(place: Station, seconds: float) -> bool:
    """Whether somebody else could take it in hand within so many seconds."""
    end = threading.Event()
    threading.Timer(seconds, end.set).start()
    while not end.wait(0.05):
        if place.exchange.begin("local/v"):
            return True
    return False


def test_encodings_are_read_as_they_were_written(desk: Station, encoder: Encoder) -> None:
    submit(desk)
    answer("local/v", desk)
    offer = desk.exchange.find("local/v")
    assert offer is not None
    data = get(desk.blobs, offer.key)
    assert to_bytes(from_bytes(data)) == data
