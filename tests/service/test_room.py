"""Large bodies wait for room, and one tenant's do not take another's."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from starlette.types import Message

from service import room as module
from service.errors import Busy, RequestError
from service.room import SMALL_BYTES, Body, Room

MB = 1_000_000


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(story)


def test_small_ones_need_none() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=0.01)
        assert [await room.take("a", SMALL_BYTES) for _ in range(1000)] == [0] * 1000

    run(story())


def test_the_largest_fits_and_a_second_of_the_same_tenant_waits_until_it_is_over() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=5)
        first = await room.take("a", 10 * MB)
        second = asyncio.create_task(room.take("a", 2 * MB))
        await asyncio.sleep(0.05)
        assert not second.done()
        await room.give("a", first)
        assert await second == 2 * MB

    run(story())


def test_a_tenant_that_fills_its_half_keeps_nobody_else_out() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=0.05)
        await room.take("a", 10 * MB)
        assert await room.take("b", 10 * MB) == 10 * MB
        with pytest.raises(Busy, match="as many large bodies"):
            await room.take("c", 2 * MB)

    run(story())


def test_who_stops_waiting_holds_nothing() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=5)
        first = await room.take("a", 10 * MB)
        gone = asyncio.create_task(room.take("a", 9 * MB))
        await asyncio.sleep(0.02)
        gone.cancel()
        await room.give("a", first)
        assert await room.take("a", 10 * MB) == 10 * MB

    run(story())


class Wire:
    """A body that comes in pieces, at a pace."""

    def __init__(self, *pieces: int, every_s: float = 0.0) -> None:
        self._pieces = list(pieces)
        self._every_s = every_s

    async def __call__(self) -> Message:
        await asyncio.sleep(self._every_s if self._pieces else 60)
        size = self._pieces.pop(0)
        return {"type": "http.request", "body": bytes(size), "more_body": bool(self._pieces)}


def body(room: Room, tenant: str = "a", length: int | None = None) -> Body:
    headers = [] if length is None else [(b"content-length", str(length).encode())]
    return Body(room, {"state": {"tenant": tenant}, "headers": headers}, 10 * MB)


def test_room_is_given_for_bytes_that_came_not_for_a_promise() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=0.05)
        for promised in (10 * MB, None):
            late = body(room, length=promised)
            await late.next(Wire(10, 10))
            assert not room._held
        one, other = body(room, "a", 8 * MB), body(room, "b", 3 * MB)
        await one.next(Wire(2 * MB, 1))
        await other.next(Wire(3 * MB))
        assert room._held == {"a": 8 * MB, "b": 3 * MB}
        await one.leave()
        await one.leave()
        assert room._held == {"b": 3 * MB}

    run(story())


def test_who_stops_sending_gives_the_room_back(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=5)
        slow, wire = body(room, length=10 * MB), Wire(2 * MB, 1000, 1000, every_s=0.1)
        monkeypatch.setattr(module, "GRACE_S", 0.05)
        monkeypatch.setattr(module, "SLOWEST", 100 * MB)
        await slow.next(wire)
        with pytest.raises(RequestError, match="too slowly") as caught:
            await slow.next(wire)
        assert caught.value.http_status == 408
        await slow.leave()
        assert not room._held

    run(story())


def test_a_body_that_is_there_waits_for_its_answer_as_long_as_that_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story() -> None:
        monkeypatch.setattr(module, "GRACE_S", 0.01)
        monkeypatch.setattr(module, "SLOWEST", 1e12)
        whole = body(Room(10 * MB), length=2 * MB)
        await whole.next(Wire(2 * MB))
        with pytest.raises(TimeoutError):  # the caller's own: nothing else ends the wait
            async with asyncio.timeout(0.2):
                await whole.next(Wire())

    run(story())


def test_a_length_that_lies_takes_no_more_than_a_share() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=0.05)
        assert await room.take("a", 10**15) == 10 * MB

    run(story())
