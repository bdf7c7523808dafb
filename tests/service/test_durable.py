"""A Redis that could lose an accepted job is refused, with the line to change."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from service.app import create_app
from service.durable import NEEDED, Durability
from service.errors import LedgerDown, LedgerUnsafe
from service.ledger import connect
from tests.service.rig import start_redis
from workers.settings import Settings


@pytest.fixture
def own(settings: Settings) -> Iterator[Settings]:
    """A Redis that this test may spoil."""
    folder = Path(tempfile.mkdtemp(prefix="tr"))
    server = start_redis(folder)
    yield settings.model_copy(update={"redis_url": f"unix://{folder / 's'}"})
    server.stop()
    shutil.rmtree(folder)


def spoil(settings: Settings, name: str, value: str) -> redis.Redis:
    client = connect(settings)
    client.config_set(name, value)
    return client


WORSE = {"appendonly": "no", "appendfsync": "everysec", "maxmemory-policy": "allkeys-lru"}


@pytest.mark.parametrize("name", NEEDED)
def test_anything_less_is_refused_with_the_line_to_change(own: Settings, name: str) -> None:
    client = connect(own)
    Durability(client, own).require()
    spoil(own, name, WORSE[name])
    with pytest.raises(LedgerUnsafe, match=f"CONFIG SET {name} {NEEDED[name]}"):
        Durability(client, own).require()


def test_the_gateway_does_not_start_over_it(own: Settings) -> None:
    spoil(own, "appendfsync", "everysec")
    with pytest.raises(LedgerUnsafe), TestClient(create_app(own)):
        pytest.fail("it started")


def test_a_redis_spoilt_later_is_told_by_readyz(own: Settings) -> None:
    with TestClient(create_app(own)) as client:
        spoil(own, "maxmemory-policy", "allkeys-lru")
        check = client.get("/readyz").json()["checks"]["redis"]
    assert not check["ok"] and "maxmemory-policy noeviction" in check["message"]


def test_a_good_answer_is_remembered_and_a_bad_one_is_not(own: Settings) -> None:
    client = spoil(own, "appendonly", "no")
    found = Durability(client, own)
    for _ in range(2):
        with pytest.raises(LedgerUnsafe):
            found.require()
    client.config_set("appendonly", "yes")
    found.require()
    client.config_set("appendonly", "no")
    found.require()
    found._assured_until = 0.0  # as after some seconds
    with pytest.raises(LedgerUnsafe):
        found.require()


def test_keys_of_another_layout_are_refused(settings: Settings) -> None:
    client = connect(settings)
    client.set(f"{settings.key_prefix}:layout", "1")
    with pytest.raises(LedgerUnsafe, match="layout 1.*TROUPE_KEY_PREFIX"):
        Durability(client, settings).require()


def test_a_redis_that_may_not_be_asked_is_refused(own: Settings) -> None:
    client = connect(own)
    client.acl_setuser("default", commands=["-config"])
    with pytest.raises(LedgerUnsafe, match="CONFIG GET"):
        Durability(client, own).require()


def test_no_redis_is_not_an_unsafe_one(settings: Settings, tmp_path: Path) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    with pytest.raises(LedgerDown):
        Durability(connect(lost), lost).require()
