"""A check whose answer is remembered: who asks often costs what is checked nothing."""

import threading
import time
from collections.abc import Callable

from service.errors import ServiceError

REMEMBERED_S = 5.0


class Lately:
    """One check, made again after `remembered_s`, however it went; by one caller at a time."""

    def __init__(self, check: Callable[[], None], remembered_s: float = REMEMBERED_S) -> None:
        self._check = check
        self._remembered_s = remembered_s
        self._until = 0.0
        self._fault = ""
        self._asking = threading.Lock()

    def fault(self) -> str:
        """What the last check raised, in words; empty: nothing."""
        with self._asking:
            if time.monotonic() >= self._until:
                self._fault = _fault(self._check)
                self._until = time.monotonic() + self._remembered_s
            return self._fault


def _fault(check: Callable[[], None]) -> str:
    try:
        check()
    except ServiceError as error:
        return str(error)
    return ""
