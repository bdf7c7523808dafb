"""A worker without encoders tries models out, too: others encode the small request for it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import golden as pictures
from engine.encoder import Encoder
from engine.errors import Cancelled, CheckpointError
from engine.pipeline import Engine
from engine.registry import Registry
from engine.runtime import Runtime
from service.fleet import Fleet
from tests.engine.test_swap import louder, spoil, variant
from workers import encode, golden
from workers.boot import Station
from workers.settings import Settings


@pytest.fixture
def desk(settings: Settings, random_model: Path) -> Iterator[Station]:
    """The worker that encodes."""
    found = Station(settings.model_copy(update={"runtime": "device=cpu,encoders=only"}))
    found.encoder = Encoder.load(random_model, runtime=Runtime.parse(found.settings.runtime))
    yield found
    found.ledger.close()


@pytest.fixture
def card(settings: Settings, registry: Registry, tmp_path: Path) -> Iterator[Station]:
    """The worker that denoises, on the channel. Whom it rings for is in `rung`."""
    runtime = "device=cpu,encoders=remote"
    own = {"model_dir": f"{registry.store.url}#stable", "runtime": runtime}
    found = Station(settings.model_copy(update=own))
    found.rung = []  # type: ignore[attr-defined]
    found.ring_encoder = found.rung.append  # type: ignore[attr-defined,method-assign]
    found.load()
    yield found
    found.ledger.close()


def test_a_model_is_compared_with_its_publishers_picture(
    registry: Registry, random_model: Path, desk: Station, card: Station, fleet: Fleet, pushed,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It asks once, beside its jobs, and waits for nobody with a job in hand."""
    monkeypatch.setattr(golden, "IN_HAND_S", 0.0)
    assert card.reload is not None and isinstance(card.engine, Engine)
    first, ref = card.engine.digest, f"{golden.TENANT}/{card.encoders}"
    assert card.fit("local/v1") and not card.reload._tried  # nobody has encoded it yet
    assert encode.answer(ref, desk) == "encoded" and card.rung == [ref]  # type: ignore[attr-defined]
    assert encode.answer(ref, desk) == "nothing to do"
    good = variant(random_model, tmp_path / "good", louder)
    told = pictures.told(good)
    card_digest = registry.push(good, evaluation=told)
    registry.channels.move("stable", card_digest)
    card.reload.round(card.engine)
    monkeypatch.setattr(encode, "encodings_of", lambda *_: pytest.fail("asked again"))
    assert card.fit("local/v2") and card.engine.digest == card_digest != first
    assert card.reload._tried == {card_digest}
    wrong = pushed(spoil(2.0), evaluation=told)  # not the picture that its publisher saw
    registry.channels.move("stable", wrong)
    card.reload.round(card.engine)
    assert card.fit("local/v3") and card.engine.digest == card_digest
    assert "grey levels from the publisher's" in fleet.quarantined()[wrong].reason


def test_waiting_for_the_encoders_is_given_up_with_the_pull(card: Station) -> None:
    assert isinstance(card.engine, Engine)
    case, over = golden.Case(card), threading.Event()

    def heed() -> None:
        if over.is_set():
            raise Cancelled("enough")

    threading.Timer(0.3, over.set).start()
    with pytest.raises(Cancelled):
        golden.prepare(card.engine, case, heed)


def test_who_has_encoders_asks_nobody(random_model: Path) -> None:
    engine = Engine.load(random_model)
    assert golden.try_out(engine, {}, None)
    with pytest.raises(CheckpointError, match="grey levels"):
        golden.try_out(engine, {pictures.KEY: [0.0] * 48}, None)
