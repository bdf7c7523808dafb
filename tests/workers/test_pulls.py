"""What is fetched holds up nothing else: a channel that moves meanwhile is followed at once, and
what it leads to no more is given up, without a trace."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.pipeline import Engine
from engine.registry import Address, Registry
from engine.stores import FolderStore
from service.fleet import Fleet
from tests.engine.test_swap import louder, spoil
from workers import reload as reload_module
from workers.pulls import Pulls
from workers.reload import Reload

LOOK_S = 0.4
AT_ONCE_S = 5.0  # of pulls that take half a minute


class Slow(FolderStore):
    """Gives some models' files a kilobyte at a time, or nothing before `release`."""

    slow: set[str]
    stuck = False
    release: threading.Event

    def stream(self, name: str) -> Iterator[bytes]:
        is_slow = name.split("/")[1] in self.slow
        for chunk in super().stream(name):
            for at in range(0, len(chunk), 1000):
                if is_slow and not self.release.is_set():
                    self.release.wait(30.0 if self.stuck else 0.02)
                yield chunk[at : at + 1000]


@pytest.fixture
def slow(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """The store as workers see it."""
    store = Slow(Path(registry.store.url))
    store.slow, store.release = set(), threading.Event()
    monkeypatch.setattr(Address, "open", lambda self: Registry(store, self.key))
    monkeypatch.setattr(reload_module, "LOOK_EVERY_S", LOOK_S)
    yield store
    store.release.set()
    await_none()


def pulling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pull"]


def await_none() -> None:
    for thread in pulling():
        thread.join(30.0)
    assert pulling() == []


@pytest.mark.parametrize("stuck", [False, True])
def test_a_rollback_waits_for_no_pull(
    registry: Registry, slow: Slow, reload: Reload, engine: Engine, fleet: Fleet, pushed,
    tmp_path: Path, stuck: bool,
) -> None:  # fmt: skip
    first, digest = engine.digest, pushed(louder)
    reload.round(engine)
    reload.fit(engine)
    slow.slow, slow.stuck = {digest}, stuck
    registry.channels.move("stable", digest)
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first and pulling() and reload.pause_s == 0.0
    assert list((tmp_path / "cache-w1").glob(f".{digest}.draft-*"))
    registry.channels.roll_back("stable")
    began = time.monotonic()
    reload.round(engine)
    reload.fit(engine)
    assert time.monotonic() - began < AT_ONCE_S and engine.digest == first
    assert reload.pause_s == LOOK_S
    if stuck:
        slow.release.set()
    await_none()
    assert not list((tmp_path / "cache-w1").glob(f"*{digest}*")) and fleet.quarantined() == {}


def test_what_the_channel_leads_to_comes_before_a_canary_which_comes_all_the_same(
    registry: Registry, slow: Slow, reload: Reload, engine: Engine, pushed
) -> None:
    first, canary, better = engine.digest, pushed(spoil(2.0)), pushed(louder)
    reload.round(engine)
    slow.slow = {canary}
    registry.channels.move("canary", canary, share=1.0)
    reload.round(engine)
    begun = pulling()
    assert begun
    registry.channels.move("stable", better)
    began = time.monotonic()
    while engine.digest != better:
        reload.round(engine)
        reload.fit(engine)
        assert time.monotonic() - began < 4 * AT_ONCE_S
    reload.round(engine)
    assert pulling() and pulling() != begun  # given up for the other's sake, and begun anew
    begun = pulling()
    registry.channels.roll_back("stable")  # held still: nothing is given up for it
    began = time.monotonic()
    reload.round(engine)
    reload.fit(engine)
    assert time.monotonic() - began < AT_ONCE_S and engine.digest == first
    assert pulling() == begun
    slow.release.set()
    while engine.digest != canary:
        reload.round(engine)
        reload.fit(engine, "local/v1")
        assert time.monotonic() - began < 60.0


def test_a_job_waits_for_the_adapter_that_it_names(
    registry: Registry, slow: Slow, reload: Reload, random_model: Path, tmp_path: Path
) -> None:
    from tests.workers.test_reload import adapter

    engine = Engine.load(reload.first())
    digest = adapter(registry, random_model, tmp_path / "a", 0.1)
    slow.slow = {digest}
    registry.channels.move("noir", digest)
    release = threading.Timer(2 * LOOK_S, slow.release.set)
    release.start()
    reload.fit(engine, "local/v", "noir")
    release.join()
    assert reload.named == {"noir": digest}


def test_what_failed_is_tried_again_and_is_not_urgent_then(random_model: Path) -> None:
    pulls, gate = Pulls(), threading.Event()

    def broken(heed: object) -> None:
        time.sleep(0.1)
        raise OSError("no room")

    def waits(heed) -> None:  # type: ignore[no-untyped-def]
        while not gate.wait(0.01):
            heed()
        raise OSError("opened")

    def ended() -> bool:
        return pulls.wait(60.0)

    assert pulls.take("a", broken, urgent=True) is None
    pulls.sweep()
    assert ended()
    with pytest.raises(OSError, match="no room"):
        pulls.take("a", broken, urgent=True)
    assert pulls.take("b", waits) is None and pulls.take("a", broken, urgent=True) is None
    pulls.sweep()
    assert pulls.pending and not pulls.wait(0.05)  # b goes on
    gate.set()
    assert ended()
    with pytest.raises(OSError, match="opened"):
        pulls.take("b", waits)
    pulls.sweep()
    assert not pulls.pending
