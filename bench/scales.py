"""Weighs processes while something is done to them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psutil


class Scales:
    """Of some processes and their children, every few hundredths of a second; in bytes.

    growth: the most that one of them held over what it held at the beginning. child: the most that
    a child of theirs held.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._before = [one.memory_info().rss for one in self._processes]
        self.growth = self.child = 0

    def settled(self) -> int:
        """What all of them and their children hold now, over what they held at the beginning."""
        trees = [p for one in self._processes for p in (one, *one.children(recursive=True))]
        return sum(map(_rss, trees)) - sum(self._before)

    @contextmanager
    def weighing(self) -> Iterator[None]:
        """Meanwhile."""
        over = threading.Event()
        thread = threading.Thread(target=self._weigh, args=(over,), daemon=True)
        thread.start()
        yield
        over.set()
        thread.join()

    def _weigh(self, over: threading.Event) -> None:
        while not over.wait(0.03):
            for one, before in zip(self._processes, self._before, strict=True):
                with suppress(psutil.NoSuchProcess):
                    self.growth = max(self.growth, _rss(one) - before)
                    self.child = max(self.child, *map(_rss, one.children(recursive=True)), 0)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
