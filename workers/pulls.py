"""Models on their way to a worker: fetched, verified and looked at beside its jobs and beside its
looks at the channels, which go on meanwhile; one at a time, and given up as soon as no channel
leads to it any more.

A pull that is given up ends at its next chunk of bytes and leaves no file. Where it stands still
because its store does, nobody waits for it: it holds one chunk until its connection's time is over.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from engine.errors import Cancelled
from workers.ready import Ready

if TYPE_CHECKING:
    from engine.folders import Heed

log = logging.getLogger(__name__)


RETRY_S = 1.0  # after a failure; until then it is told again


class Pull:
    """One model on its way, from now on. digest: as a channel names it. act: what makes it ready;
    it calls what it is given all the time, and lets out what that raises."""

    def __init__(self, digest: str, act: "Callable[[Heed], Ready]") -> None:
        self.digest = digest
        self._act = act
        self._found: Ready | None = None
        self._error: Exception | None = None
        self._unwanted, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="pull", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then, well or not."""
        return self._over.wait(max(seconds, 0.0))

    def result(self) -> Ready:
        """Of a pull that has ended. Raises what `act` raised."""
        if self._error is not None:
            raise self._error
        assert self._found is not None
        return self._found

    def give_up(self) -> None:
        """Nobody will ask for its result."""
        self._unwanted.set()
        if self._over.is_set():
            self._close()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self._found = self._act(self._heed)
            log.info("%s is ready after %.3f s", self.digest, time.monotonic() - began)
        except Cancelled:
            log.info("%s is given up after %.3f s", self.digest, time.monotonic() - began)
        except Exception as error:  # noqa: BLE001 - told to who asks for the result
            self._error = error
        self._over.set()
        if self._unwanted.is_set():  # who gave it up came too early to see what it had found
            self._close()

    def _heed(self) -> None:
        if self._unwanted.is_set():
            raise Cancelled(f"{self.digest[:12]} is not wanted any more")

    def _close(self) -> None:
        if self._found is not None:
            self._found.close()


class Pulls:
    """What one worker pulls. Used by one thread at a time; only `wait` may be called beside it."""

    def __init__(self) -> None:
        self.pending = False  # something that was asked for since the last sweep is not there yet
        self._now: Pull | None = None
        self._failed: dict[str, tuple[float, Exception]] = {}  # when, and why
        self._asked: set[str] = set()
        self._late: set[str] = set()

    def take(
        self, digest: str, act: "Callable[[Heed], Ready]", urgent: bool = False
    ) -> Ready | None:
        """What `act` has made; None: not yet, ask again. Raises what it raised; asked once more
        after RETRY_S, it is tried once more.

        urgent: whatever else is on its way is given up, and begins anew when its turn comes; not
            for the sake of what could not be had the last time.
        """
        self._asked.add(digest)
        at, error = self._failed.get(digest, (0.0, None))
        if error is not None and time.monotonic() - at < RETRY_S:
            raise error
        if urgent and digest not in self._failed and self._now and self._now.digest != digest:
            self._drop()
        if self._now is None:
            self._now = Pull(digest, act)
        now = self._now
        if now.digest != digest or not now.wait(0):
            self._late.add(digest)
            return None
        self._now = None
        try:
            found = now.result()
        except Exception as error:
            self._failed[digest] = time.monotonic(), error.with_traceback(None)
            raise
        self._failed.pop(digest, None)
        return found

    def is_late(self, digest: str) -> bool:
        """Whether it was asked for since the last sweep and is still on its way."""
        return digest in self._late

    def sweep(self) -> None:
        """All that is wanted was asked for; what is not is given up."""
        if self._now is not None and self._now.digest not in self._asked:
            self._drop()
        self.pending = bool(self._late)
        self._failed = {d: why for d, why in self._failed.items() if d in self._asked}
        self._asked, self._late = set(), set()

    def rest(self) -> None:
        """What is wanted could not be told: what is on its way goes on, and nobody waits for it."""
        self.pending = False
        self._asked, self._late = set(), set()

    def wait(self, seconds: float) -> bool:
        """Whether by then it is worth asking again."""
        now = self._now
        return self.pending and (now is None or now.wait(seconds))

    def _drop(self) -> None:
        if self._now is not None:
            self._now.give_up()
            self._now = None
