"""Turns between tenants, for what is scarce in a gateway: who asks for much waits for itself.

Decoding pictures takes seconds where everything else takes milliseconds, and a tenant that sends
many would have all threads, and all decoding children, to itself.
"""

import asyncio
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

P = ParamSpec("P")
T = TypeVar("T")

AT_ONCE = 16
OF_ONE_TENANT = 4


class Turns:
    """Threads beside those that the framework has for all else. Belongs to one event loop."""

    def __init__(self, at_once: int = AT_ONCE, each: int = OF_ONE_TENANT) -> None:
        self._threads = CapacityLimiter(at_once)
        self._each = each
        self._ways: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    async def run(self, tenant: str, call: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T:
        """What call(*args) returns or raises; its context variables are those of the caller."""
        way = self._ways.setdefault(tenant, asyncio.Semaphore(self._each))
        self._users[tenant] += 1
        try:
            async with way:
                return await run_sync(partial(call, *args, **kw), limiter=self._threads)
        finally:
            self._users[tenant] -= 1
            if not self._users[tenant]:
                del self._users[tenant], self._ways[tenant]


class FairPool:
    """A pool of threads that takes the next piece of work from the next tenant."""

    def __init__(self, size: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def submit(self, tenant: str, call: Callable[P, T], *args: P.args, **kw: P.kwargs) -> Future[T]:
        """As `concurrent.futures`."""
        found: Future[T] = Future()
        with self._lock:
            self._waiting.setdefault(tenant, deque()).append((found, partial(call, *args, **kw)))
        self._pool.submit(self._next)
        return found

    def close(self) -> None:
        """Take no more; what waits is cancelled."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for waiting in self._waiting.values():
                for future, _ in waiting:
                    future.cancel()
            self._waiting.clear()

    def _next(self) -> None:
        with self._lock:
            if not self._waiting:
                return
            tenant, waiting = self._waiting.popitem(last=False)
            future, work = waiting.popleft()
            if waiting:
                self._waiting[tenant] = waiting  # behind all others
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the caller's to handle, where it waits
            future.set_exception(error)
