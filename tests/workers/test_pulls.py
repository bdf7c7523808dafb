"""What is fetched holds up nothing else: a channel that moves meanwhile is followed at once, and
what it leads to no more is given up, without a trace."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from engine.errors import Cancelled, CheckpointError, RegistryError
from engine.pipeline import Engine
from engine.registry import Address, Registry
from engine.stores import FolderStore
from service.errors import LedgerDown
from service.fleet import Fleet
from tests.engine.test_swap import louder, spoil
from tests.workers.test_reload import adapter
from workers import pulls as pulls_module
from workers import reload as reload_module
from workers.pulls import Pulls
from workers.ready import Ready
from workers.reload import Reload

LOOK_S = 0.4
AT_ONCE_S = 15.0  # of pulls that take a minute and a half


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
                    self.release.wait(90.0 if self.stuck else 0.06)
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
        thread.join(90.0)
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
    engine = Engine.load(reload.first())
    digest = adapter(registry, random_model, tmp_path / "a", 0.1)
    slow.slow = {digest}
    registry.channels.move("noir", digest)
    release = threading.Timer(2 * LOOK_S, slow.release.set)
    release.start()
    reload.fit(engine, "local/v", "noir")
    release.join()
    assert reload.named == {"noir": digest}


def test_a_ledger_that_is_away_while_something_comes_is_no_reason_to_hurry(
    registry: Registry, slow: Slow, reload: Reload, engine: Engine, fleet: Fleet,
    random_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    reload.round(engine)
    digest = adapter(registry, random_model, tmp_path / "a", 0.1)
    slow.slow = {digest}
    registry.channels.move("noir", digest)
    reload.round(engine)
    assert reload.pause_s == 0.0
    looks = []

    def away() -> None:
        looks.append(time.monotonic())
        raise LedgerDown("away")

    monkeypatch.setattr(fleet, "quarantined", away)
    slow.release.set()
    await_none()
    with pytest.raises(CheckpointError, match="cannot be seen now: away"):
        reload.fit(engine, "local/v", "noir")
    assert reload.pause_s == LOOK_S and len(looks) == 1


def test_who_waits_for_an_adapter_is_heard_and_blames_nothing(
    registry: Registry, slow: Slow, reload: Reload, engine: Engine, pushed,
    random_model: Path, tmp_path: Path,
) -> None:  # fmt: skip
    canary = pushed(spoil(2.0))
    registry.channels.move("canary", canary, share=1.0)
    while reload.meant("local/v") != canary:
        reload.round(engine)
    digest = adapter(registry, random_model, tmp_path / "a", 0.1)
    slow.slow, slow.stuck = {digest}, True
    registry.channels.move("noir", digest)
    assert reload.meant("local/v", "noir") == ""
    heard = iter(range(3))

    def heed() -> None:
        if next(heard, None) is None:
            raise Cancelled("leave")

    with pytest.raises(Cancelled):
        reload.fit(engine, "local/v", "noir", heed)
    assert reload.meant("local/v", "noir") == ""


def test_two_that_cannot_be_had_are_not_tried_in_a_circle() -> None:
    pulls, tries = Pulls(), Counter[str]()

    def broken(digest: str) -> Callable[[object], Ready]:
        def act(_: object) -> Ready:
            tries[digest] += 1
            raise RegistryError(f"{digest} is signed by nobody")

        return act

    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        for digest in ("a", "b"):
            with suppress(RegistryError):
                pulls.take(digest, broken(digest))
        pulls.sweep()
        pulls.wait(0.1)
        if not pulls.pending:
            break
    assert tries == {"a": 1, "b": 1} and not pulls.pending
    for digest in ("a", "b"):
        with pytest.raises(RegistryError, match=f"{digest} is signed by nobody"):
            pulls.take(digest, broken(digest))  # told again, and not tried yet
    assert tries.total() == 2


def test_what_failed_is_tried_again_and_is_not_urgent_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pulls_module, "RETRY_S", 0.0)
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
