"""How much of large bodies a gateway holds at once: a form is in memory while its pictures are
decoded, so many of them at the same time would be its end.

Who comes when there is no room waits with its body unread, which holds up only its sender.
"""

import asyncio
from collections import Counter

from service.errors import Busy

SMALL_BYTES = 1 << 20
BODIES = 2  # of the largest size, over all tenants; one tenant has half of the room
WAIT_S = 10.0


class Room:
    """For bodies of one event loop's requests."""

    def __init__(self, max_body_bytes: int, wait_s: float = WAIT_S) -> None:
        self._share = BODIES * max_body_bytes // 2
        self._wait_s = wait_s
        self._held: Counter[str] = Counter()
        self._changed = asyncio.Condition()

    async def take(self, tenant: str, size: int) -> int:
        """Room for a body of so many bytes; returns how many to give back after the request.

        Raises:
            Busy: there was none for `wait_s` seconds.
        """
        if size <= SMALL_BYTES:
            return 0
        wanted = min(size, self._share)
        try:
            async with asyncio.timeout(self._wait_s), self._changed:
                await self._changed.wait_for(lambda: self._fits(tenant, wanted))
                self._held[tenant] += wanted
        except TimeoutError:
            raise Busy(
                "This server is reading as many large bodies as it can hold. Try again shortly."
            ) from None
        return wanted

    async def give(self, tenant: str, size: int) -> None:
        """What `take` returned."""
        if size:
            async with self._changed:
                self._held[tenant] -= size
                self._held += Counter()  # forgets who holds nothing
                self._changed.notify_all()

    def _fits(self, tenant: str, size: int) -> bool:
        mine, all_of_it = self._held[tenant] + size, self._held.total() + size
        return mine <= self._share and all_of_it <= 2 * self._share
