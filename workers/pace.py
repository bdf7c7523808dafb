"""When to write down where a run stands: as often as takes at most a two-hundredth of its time.

Progress is told likewise (`Telling`), for a ledger that loses nothing syncs its file at each word.

What a save costs is known from the last one; the next is due once the work since then has taken two
hundred times that. So all saves but the last together take at most .5 % of the work before them,
whatever the model, the store and the machine.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.005
TELLING_SHARE = 0.01
ASSUMED_S = 0.01  # the first one's cost, before any is known
LONGEST_S = 0.5


class Pace:
    """Of one attempt; begins with it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._cost_s = ASSUMED_S

    def due(self, done: int, steps: int) -> bool:
        """Whether to save after `done` of `steps`; never after the last, for the video follows."""
        return done < steps and SHARE * (self._clock() - self._since) >= self._cost_s

    def saved(self, took_s: float) -> None:
        """A save, or a try at one, has just ended."""
        self._cost_s = took_s
        self._since = self._clock()


class Telling:
    """When a step is told: as often as that takes at most a hundredth of the time, and after
    LONGEST_S whatever it takes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._cost_s = 0.0

    def due(self) -> bool:
        """Whether enough time has gone by since the last one."""
        return self._clock() - self._since >= min(self._cost_s / TELLING_SHARE, LONGEST_S)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around each."""
        begin = self._clock()
        try:
            yield
        finally:
            self._since = self._clock()
            self._cost_s = self._since - begin
