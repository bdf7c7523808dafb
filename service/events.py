"""What happens to a job, as server-sent events, from the stream that the ledger's Lua writes.

One task of the gateway reads all the streams that somebody listens to, over one connection to
Redis, a few times a second. A listener is at an id of its stream, and each reading begins where
the furthest behind of a stream's listeners is: so replay, a Redis that was away, and a client that
reads slowly are all the same case, and nobody misses an event or gets one twice. For a client that
is behind no more than QUEUE events are kept; one that takes nothing for SEND_LIMIT_S is cut.

The wire is the HTML standard's (section 9.2): `id` is the stream's, so `Last-Event-ID` goes on.
"""

import asyncio
import logging
import re
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from types import FrameType
from typing import Any

import redis
from starlette.responses import StreamingResponse
from starlette.types import Send

from service.errors import LedgerDown, NotFound, QueueFull, RequestError
from service.ledger import answering, connect_async
from service.settings import Settings

log = logging.getLogger(__name__)

TERMINAL = ("completed", "failed", "cancelled")
READ_EVERY_S = 0.1
KEEP_ALIVE_S = 15.0
SEND_LIMIT_S = 30.0
RETRY_MS = 1000  # what clients are told to wait before they come back
COUNT = 100  # events of one stream in one reading
QUEUE = 200
MAX_LISTENERS = 2000

Id = tuple[int, int]
Handler = Callable[[int, FrameType | None], None]
START: Id = (0, 0)
_ID = re.compile(r"(\d{1,20})(?:-(\d{1,20}))?", re.ASCII)


@dataclass(frozen=True)
class Event:
    """One entry of a job's stream. `data` is a JSON object as text."""

    id: str
    kind: str
    data: str

    @property
    def frame(self) -> bytes:
        """On the wire."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()


def parse_id(text: str, param: str) -> Id:
    """An event's id as clients send it back; empty is before the first.

    Raises:
        RequestError: it is none.
    """
    if not text:
        return START
    match = _ID.fullmatch(text)
    found = (int(match[1]), int(match[2] or 0)) if match else (2**64, 0)
    if max(found) >= 2**64:
        raise RequestError(
            f"{param}: must be the id of an event, such as 1763725200000-0, got {text!r:.60}.",
            param=param,
        )
    return found


class Listener:
    """One client at one job's stream; `last` is the id of the last event put into its queue."""

    def __init__(self, ref: str, last: Id) -> None:
        self.ref = ref
        self.last = last
        self.queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE)  # None: the gateway leaves

    def take(self, event: Event) -> None:
        """The next event, unless it had it or has no room now: then a later reading brings it."""
        at = parse_id(event.id, "id")
        if at > self.last and not self.queue.full():
            self.queue.put_nowait(event)
            self.last = at


class Events:
    """All listeners of this process. `listen` is the door; close it before the loop ends."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = f"{settings.key_prefix}:events:"
        self._redis = connect_async(settings, "events")
        self._listeners: set[Listener] = set()
        self._some = asyncio.Event()
        self._leaving = False
        self._reader: asyncio.Task[None] | None = None

    async def newer(self, ref: str, after: Id) -> bool:
        """Whether the stream holds an event after this id. Raises LedgerDown."""
        with answering():
            return bool(await self._redis.xrange(self._prefix + ref, f"({_text(after)}", count=1))

    async def listen(
        self, ref: str, after: Id, over: Callable[[Id], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The stream from `after` on until the job's end, or until this gateway leaves.

        `over` is asked while nothing comes: whether nothing will, after this id. It may raise
        NotFound, which ends the stream, and LedgerDown, which does not.
        """
        listener = self._enter(ref, after)
        try:
            yield f"retry: {RETRY_MS}\n\n".encode()
            while not self._leaving:
                try:
                    event = await asyncio.wait_for(listener.queue.get(), KEEP_ALIVE_S)
                except TimeoutError:
                    if await _is_over(over, listener.last):
                        return
                    yield b": nothing new\n\n"
                    continue
                if event is None:
                    return
                yield event.frame
                if event.kind in TERMINAL:
                    return
        finally:
            self._listeners.discard(listener)

    def leave(self) -> None:
        """End all streams: their clients come back, to another gateway or to the next one."""
        self._leaving = True
        for listener in self._listeners:
            if not listener.queue.full():  # who has events waiting looks at `_leaving` after each
                listener.queue.put_nowait(None)

    def leave_on_signals(self) -> None:
        """Where this process's main thread serves: before the server's own handlers, which wait
        for open answers to end."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._before(signal.getsignal(number), loop))

    def _before(self, handler: Any, loop: asyncio.AbstractEventLoop) -> Handler:
        def heard(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.leave)
            if callable(handler):
                handler(number, frame)

        return heard

    async def close(self) -> None:
        """Stop reading, once the reading in hand is over: it is not cancelled, because redis-py
        may swallow that, and then this would wait for ever."""
        self.leave()
        self._some.set()
        if self._reader is not None:
            await self._reader
        await self._redis.aclose()

    def check_room(self) -> None:
        """Raises QueueFull when as many listen as one process serves."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise QueueFull(f"{MAX_LISTENERS} clients listen to events already. Poll, or wait.")

    def _enter(self, ref: str, after: Id) -> Listener:
        listener = Listener(ref, after)
        self._listeners.add(listener)
        self._some.set()
        if self._reader is None:
            self._reader = asyncio.create_task(self._read_on())
        return listener

    async def _read_on(self) -> None:
        while not self._leaving:
            await self._some.wait()
            try:
                await self._read_once()
            except redis.RedisError as error:
                log.warning("events: %s: %s", type(error).__name__, error)
            if not (self._listeners or self._leaving):
                self._some.clear()
            await asyncio.sleep(READ_EVERY_S)

    async def _read_once(self) -> None:
        by_key: dict[str, list[Listener]] = {}
        for listener in self._listeners:
            if not listener.queue.full():
                by_key.setdefault(self._prefix + listener.ref, []).append(listener)
        if not by_key:
            return
        starts = {key: _text(min(one.last for one in ones)) for key, ones in by_key.items()}
        found: Any = await self._redis.xread(starts, count=COUNT)  # type: ignore[arg-type]
        for key, entries in dict(found).items():
            for id, fields in entries:
                event = Event(id, fields["kind"], fields["data"])
                for listener in by_key[key]:
                    listener.take(event)


class EventStream(StreamingResponse):
    """An answer that is given up when its client takes nothing of it for SEND_LIMIT_S."""

    media_type = "text/event-stream"

    async def stream_response(self, send: Send) -> None:
        """StreamingResponse's, with a limit on every piece."""

        async def sending(message: dict[str, object]) -> None:
            async with asyncio.timeout(SEND_LIMIT_S):
                await send(message)

        try:
            async with aclosing(self.body_iterator):  # type: ignore[type-var]
                await super().stream_response(sending)  # type: ignore[arg-type]
        except TimeoutError:
            log.warning("events: a client took nothing for %g s", SEND_LIMIT_S)


async def _is_over(over: Callable[[Id], Awaitable[bool]], last: Id) -> bool:
    try:
        return await over(last)
    except NotFound:
        return True
    except LedgerDown:
        return False


def _text(id: Id) -> str:
    return f"{id[0]}-{id[1]}"
