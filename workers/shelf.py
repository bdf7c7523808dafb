"""How a worker waits for a store that refuses: a full disk, S3 away.

What is finished took a card's time, and a job has few starts: neither is spent on a store. So what
the store refuses is tried again, at growing pauses, for some minutes. Meanwhile this worker says
so, and takes no other job; where the store takes as much again as it last refused, it goes on.
"""

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from service.blobs import Blob, Blobs
from service.errors import BlobError, BlobMissing

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE_S = 600.0
PAUSES_S = (0.5, 15.0)  # the first pause between two tries, and the longest
HEAR_EVERY_S = 1.0


class Shelf:
    """The store, patiently. `refusal` says why it refuses; empty: it does not.

    Args:
        changed: called when `refusal` has changed.
    """

    def __init__(self, blobs: Blobs, changed: Callable[[], None]) -> None:
        self.refusal = ""
        self._blobs = blobs
        self._changed = changed
        self._size = 0  # bytes that were last refused

    def put(self, prefix: str, data: bytes, suffix: str, hear: Callable[[], None]) -> Blob:
        """`Blobs.put`, as `patiently`."""

        def act() -> Blob:
            self._size = len(data)
            return self._blobs.put(prefix, data, suffix)

        return self.patiently(act, hear)

    def patiently(self, act: Callable[[], T], hear: Callable[[], None]) -> T:
        """What act() returns, tried again while the store refuses.

        Args:
            hear: called about once a second while it waits; what it raises ends the waiting and
                comes out of here.

        Raises:
            BlobMissing: at once; waiting brings nothing back.
            BlobError: the store has refused for PATIENCE_S seconds.
        """
        end, pause = time.monotonic() + PATIENCE_S, PAUSES_S[0]
        while True:
            try:
                found = act()
            except BlobMissing:
                raise
            except BlobError as error:
                self._say(f"the store refuses: {error}")
                if time.monotonic() > end:
                    raise
                _wait(pause, hear)
                pause = min(2 * pause, PAUSES_S[1])
            else:
                self._say("")
                return found

    def look(self) -> None:
        """For a worker without a job, after a refusal: does the store take as much again?"""
        name = f"health-{uuid.uuid4().hex}"
        try:
            self._blobs.put(name, bytes(self._size), ".bin")
        except BlobError as error:
            self._say(f"the store refuses: {error}")
            return
        with suppress(BlobError):
            self._blobs.delete(name)
        self._say("")

    def _say(self, refusal: str) -> None:
        if refusal == self.refusal:
            return
        self.refusal = refusal
        log.warning("%s", refusal or "the store takes what it is given again")
        self._changed()


def _wait(pause_s: float, hear: Callable[[], None]) -> None:
    end = time.monotonic() + pause_s
    hear()
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, HEAR_EVERY_S))
        hear()
