"""Word between workers: one at a time has a job in hand, and what came of it is found."""

from dataclasses import replace

import pytest
import redis

from service.errors import LedgerDown
from service.exchange import KEPT_S, Exchange, Offer
from service.ledger import connect
from tests.service.rig import keys_of, wait_for
from workers.settings import Settings


@pytest.fixture
def exchange(connection: redis.Redis, settings: Settings) -> Exchange:
    return Exchange(connection, settings)


def test_one_at_a_time_and_not_again_once_it_is_done(exchange: Exchange) -> None:
    assert exchange.begin("local/v") and not exchange.begin("local/v")
    assert exchange.begin("local/another")
    exchange.offer("local/v", Offer(key="t/local/videos/v/encodings/x", digest="d"))
    assert not exchange.begin("local/v")
    assert exchange.find("local/v") == Offer(key="t/local/videos/v/encodings/x", digest="d")
    exchange.forget("local/v")
    assert exchange.find("local/v") is None and exchange.begin("local/v")


def test_who_dies_lets_go_and_who_lives_holds_on(exchange: Exchange, settings: Settings) -> None:
    assert exchange.begin("local/v")
    wait_for(lambda: exchange.begin("local/v"))  # the lease of the one before ran out
    long = Exchange(connect(settings), settings.model_copy(update={"lease_s": 600.0}))
    long.hold("v")
    assert not exchange.begin("local/v")


def test_nobody_is_rung_for_who_is_at_it_or_done(exchange: Exchange) -> None:
    assert exchange.may_ring("local/v")
    assert not exchange.may_ring("local/v")  # once in a while is enough
    wait_for(lambda: exchange.may_ring("local/v"))
    exchange.begin("local/held")
    exchange.offer("local/done", Offer(error="no"))
    assert not exchange.may_ring("local/held") and not exchange.may_ring("local/done")


def test_nothing_stays_for_ever(exchange: Exchange, settings: Settings) -> None:
    exchange.begin("local/held")
    exchange.may_ring("local/rung")
    exchange.offer("local/done", Offer(error="prompt is too long", field="prompt"))
    client = connect(settings)
    lives = {key: int(client.ttl(key)) for key in keys_of(settings)}
    assert len(lives) == 3 and all(0 <= seconds <= KEPT_S for seconds in lives.values())
    client.close()


def test_without_redis_it_says_so(settings: Settings) -> None:
    gone = settings.model_copy(update={"redis_url": "unix:///nowhere", "redis_timeout_s": 0.2})
    exchange = Exchange(connect(gone), gone)
    for act in (exchange.begin, exchange.hold, exchange.find, exchange.may_ring, exchange.forget):
        with pytest.raises(LedgerDown):
            act("v")


def test_an_offer_is_a_key_or_an_error(exchange: Exchange) -> None:
    offer = Offer(error="too long", field="prompt")
    exchange.offer("local/v", offer)
    assert exchange.find("local/v") == offer != replace(offer, field="")
