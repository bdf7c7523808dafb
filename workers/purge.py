"""What deleted jobs leave in a worker's caches is cleared within seconds.

The ledger counts deletions. Whenever the count has changed, and after every job in hand (which may
have been deleted while it was being encoded), the cache names those it keeps anything for, the
ledger says which of them are gone, and the cache forgets them. So nothing has to be listed anywhere
of what was deleted, and a worker that was down meanwhile catches up when it comes back.
"""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from service.errors import LedgerDown
from service.ledger import Ledger

if TYPE_CHECKING:
    from engine.cache import EncodingCache

log = logging.getLogger(__name__)
LOOK_EVERY_S = 1.0


class Purge:
    """Watches for one worker process. `cache` gives its cache, None while it has none."""

    def __init__(self, ledger: Ledger, cache: Callable[[], "EncodingCache | None"]) -> None:
        self._ledger = ledger
        self._cache = cache
        self._seen = 0
        self._again = threading.Event()
        self.again()

    def again(self) -> None:
        """Look at everything at the next round, whatever the count."""
        self._again.set()

    def round(self) -> None:
        """One look. Without Redis or a disk that answers, the next one tries again."""
        cache = self._cache()
        if cache is None:
            return
        try:
            count = self._ledger.deletions()
            if count == self._seen and not self._again.is_set():
                return
            self._again.clear()
            gone = self._ledger.gone(cache.owners())
            cache.forget(gone)
        except (LedgerDown, OSError) as error:
            log.warning("caches not cleared yet: %s", error)
            self.again()
            return
        self._seen = count
        if gone:
            log.info("forgot the encodings of %d deleted jobs", len(gone))
