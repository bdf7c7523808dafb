"""Large bodies wait for room, and one tenant's do not take another's."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from service.errors import Busy
from service.room import SMALL_BYTES, Room

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


def test_a_length_that_lies_takes_no_more_than_a_share() -> None:
    async def story() -> None:
        room = Room(10 * MB, wait_s=0.05)
        assert await room.take("a", 10**15) == 10 * MB

    run(story())
