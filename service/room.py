"""How much of large bodies a gateway holds at once: a form is in memory while its pictures are
decoded, so many of them at the same time would be its end.

Who comes when there is no room waits with the rest of its body unread, which holds up only its
sender. Room is given for bytes that came: a megabyte first, and then they have to keep coming.
"""

import asyncio
import time
from collections import Counter

from starlette.types import Message, Receive, Scope

from service.errors import Busy, RequestError

SMALL_BYTES = 1 << 20
BODIES = 2  # of the largest size, over all tenants; one tenant has half of the room
WAIT_S = 10.0
GRACE_S = 10.0
SLOWEST = 128_000  # bytes a second, on the mean since room was given


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


class Body:
    """A request's body on its way in."""

    def __init__(self, room: Room, scope: Scope, max_bytes: int) -> None:
        self._room = room
        self._scope = scope
        self._max_bytes = max_bytes
        self._seen = 0
        self._since = 0.0
        self._held = ("", 0)
        self._whole = False

    async def next(self, receive: Receive) -> Message:
        """The next message. Counts the body as it comes, because Content-Length may lie.

        Raises:
            RequestError: it is too large, or comes too slowly.
            Busy: there is no room for it.
        """
        message = await self._in_time(receive)
        self._seen += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._seen > self._max_bytes:
            limit = f"{self._max_bytes / 1e6:g} MB"
            raise RequestError(f"The body is larger than {limit}.", None, "body_too_large", 413)
        if self._seen > SMALL_BYTES and not self._since:
            tenant = self._scope["state"].get("tenant", "")
            self._held = (tenant, await self._room.take(tenant, self._size()))
            self._since = time.monotonic()
        return message

    async def leave(self) -> None:
        """It is in memory no more."""
        held, self._held = self._held, ("", 0)
        await self._room.give(*held)

    async def _in_time(self, receive: Receive) -> Message:
        if self._whole or not self._since:
            return await receive()
        left_s = GRACE_S + self._seen / SLOWEST - (time.monotonic() - self._since)
        try:
            async with asyncio.timeout(left_s):
                return await receive()
        except TimeoutError:
            wanted = f"at least {SLOWEST / 1000:g} kB a second"
            raise RequestError(
                f"The body comes too slowly: {wanted}.", None, "body_too_slow", 408
            ) from None

    def _size(self) -> int:
        lengths = [value for name, value in self._scope["headers"] if name == b"content-length"]
        return int(lengths[0]) if lengths and lengths[0].isdigit() else self._max_bytes
