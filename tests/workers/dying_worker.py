"""`python -m tests.workers.dying_worker`: the product's worker, but an exchange of weights ends it,
as a segfault would, or the kernel when memory is short."""

import os
import signal

from engine import swap
from workers.boot import Station
from workers.generate import answer
from workers.settings import Settings


def die(*_: object) -> None:
    """As nothing that could be caught."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    place = Station(Settings())
    place.load()
    assert place.reload is not None
    place.reload.round(place.engine)
    swap.take = die  # type: ignore[assignment]
    answer(place)
