"""What the ledger's Redis must promise, checked before a job is taken.

An accepted job may be lost only with the disk: every write is synced before it is answered (AOF,
`appendfsync always`), nothing is ever evicted, and the keys belong to one Troupe of one layout.
"""

import time
from typing import Any

import redis

from service import scripts
from service.errors import LedgerUnsafe
from service.ledger import answering
from service.settings import Settings

REMEMBERED_S = 5.0
LAYOUT = "3"  # of the keys; another one means another version of this software
NEEDED = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


class Durability:
    """One question to Redis, whose good answer is remembered for a while."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._relist = client.register_script(scripts.source("relist"))
        self._assured_until = 0.0

    @property
    def assured(self) -> bool:
        """Whether a good answer is remembered."""
        return time.monotonic() <= self._assured_until

    def require(self) -> None:
        """Costs nothing for a while after a good answer.

        Raises:
            LedgerUnsafe: with each line to change.
            LedgerDown: Redis does not answer.
        """
        if not self.assured:
            self.check()
            self._assured_until = time.monotonic() + REMEMBERED_S

    def check(self) -> None:
        """The same, asked anew."""
        with answering():
            wrong = [f"{name} {NEEDED[name]}" for name in unsafe(self._redis)]
            self._redis.set(f"{self._prefix}layout", LAYOUT, nx=True)
            layout: Any = self._relist(keys=[self._prefix])[0]
        if layout != LAYOUT:
            raise LedgerUnsafe(
                f"The keys in this Redis have layout {layout}, this Troupe needs {LAYOUT}: give it"
                " another TROUPE_KEY_PREFIX, or the version that wrote them."
            )
        if wrong:
            now = "; ".join(f"CONFIG SET {line}" for line in wrong)
            raise LedgerUnsafe(
                "This Redis could lose accepted jobs. Change in its configuration:"
                f" {', '.join(wrong)} (or at once, with redis-cli: {now})."
            )


def unsafe(client: redis.Redis) -> dict[str, str]:
    """The settings of a Redis that are other than NEEDED, as they are.

    Raises:
        LedgerUnsafe: it does not tell them.
        redis.RedisError: it does not answer.
    """
    try:
        found = {name: str(client.config_get(name).get(name)) for name in NEEDED}
    except redis.ResponseError as error:
        raise LedgerUnsafe(
            f"This Redis does not say how safe it is ({error}): allow its user CONFIG GET"
            " (ACL SETUSER … +config|get)."
        ) from error
    return {name: value for name, value in found.items() if value != NEEDED[name]}
