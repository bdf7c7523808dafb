"""What a worker keeps of deleted jobs, over a real ledger and a real cache."""

from pathlib import Path

import pytest
import torch

from engine.cache import EncodingCache
from engine.encodings import Encodings
from service.ledger import Ledger
from tests.service.rig import request_of
from workers.purge import Purge
from workers.settings import Settings


def made() -> Encodings:
    return Encodings(torch.ones(2, 3), torch.zeros(0), torch.zeros(0), torch.zeros(0))


def submit(ledger: Ledger, *refs: str) -> None:
    for ref in refs:
        ledger.submit(ref, request_of("anna"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.parent.parent == folder)


@pytest.fixture
def cache(tmp_path: Path) -> EncodingCache:
    return EncodingCache(folder=tmp_path / "encodings")


def test_only_what_deleted_jobs_own_is_forgotten(ledger: Ledger, cache: EncodingCache) -> None:
    submit(ledger, "t/a", "t/b")
    for key, owner in (("k1", "t/a"), ("k2", "t/a"), ("k2", "t/b"), ("k3", "t/b")):
        cache.get_or(key, made, "t", owner)
    purge = Purge(ledger, lambda: cache)
    purge.round()
    assert cache.owners() == {"t/a", "t/b"}
    ledger.delete("t/a")
    purge.round()
    assert cache.owners() == {"t/b"}
    assert cache.folder is not None
    assert {name[:2] for name in files(cache.folder)} == {"k2", "k3"}


def test_it_asks_only_when_something_was_deleted(ledger: Ledger, cache: EncodingCache) -> None:
    purge = Purge(ledger, lambda: cache)
    purge.round()
    cache.get_or("k", made, "t", "t/never")  # its job was deleted while it was encoded
    purge.round()
    assert cache.owners() == {"t/never"}
    purge.again()
    purge.round()
    assert cache.owners() == set()


def test_a_worker_that_was_down_catches_up(ledger: Ledger, cache: EncodingCache) -> None:
    submit(ledger, "t/a")
    cache.get_or("k", made, "t", "t/a")
    ledger.delete("t/a")
    later = EncodingCache(folder=cache.folder)
    Purge(ledger, lambda: later).round()
    assert later.owners() == set() and cache.folder is not None and files(cache.folder) == []


def test_without_redis_nothing_is_forgotten_and_it_is_tried_again(
    ledger: Ledger, settings: Settings, cache: EncodingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.ledger import connect

    nowhere = settings.model_copy(update={"redis_url": "unix:///nowhere", "redis_timeout_s": 0.2})
    down = Ledger(connect(nowhere), nowhere)
    cache.get_or("k", made, "t", "t/never")
    purge = Purge(ledger, lambda: cache)
    monkeypatch.setattr(purge, "_ledger", down)
    purge.round()
    assert cache.owners() == {"t/never"}
    monkeypatch.setattr(purge, "_ledger", ledger)
    purge.round()
    assert cache.owners() == set()


def test_without_a_cache_there_is_nothing_to_do(ledger: Ledger) -> None:
    Purge(ledger, lambda: None).round()
