"""Who asks for much waits for itself."""

import asyncio
import contextvars
import threading
import time
from concurrent.futures import CancelledError, Future

import pytest

from service.turns import FairPool, Turns

WHO = contextvars.ContextVar("who", default="nobody")


def test_one_tenants_slow_calls_leave_threads_to_others() -> None:
    async def story() -> None:
        turns, gate = Turns(at_once=4, each=2), threading.Event()
        slow = [asyncio.create_task(turns.run("a", gate.wait, 10)) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(turns.run("b", lambda: 1 + 1), 2) == 2
        assert not any(one.done() for one in slow)
        gate.set()
        assert await asyncio.gather(*slow) == [True] * 20
        assert not turns._ways and not turns._users

    asyncio.run(story())


def test_a_call_sees_its_callers_context_and_its_error_comes_back() -> None:
    async def story() -> None:
        turns = Turns()
        WHO.set("me")
        assert await turns.run("a", WHO.get) == "me"
        with pytest.raises(ZeroDivisionError):
            await turns.run("a", lambda: 1 / 0)
        assert not turns._ways

    asyncio.run(story())


def test_the_next_piece_is_the_next_tenants() -> None:
    pool, gate, order = FairPool(1, "t"), threading.Event(), list[str]()
    first = pool.submit("a", gate.wait, 10)
    while first.running() is False:
        time.sleep(0.001)
    rest = [pool.submit(name[0], order.append, name) for name in ("a1", "a2", "a3", "b1", "c1")]
    gate.set()
    for one in rest:
        one.result(10)
    assert order == ["a1", "b1", "c1", "a2", "a3"]


def test_what_is_cancelled_is_not_done_and_errors_are_the_callers() -> None:
    pool, gate, done = FairPool(1, "t"), threading.Event(), list[int]()
    pool.submit("a", gate.wait, 10)
    dropped = pool.submit("a", done.append, 1)
    bad: Future[float] = pool.submit("a", lambda: 1 / 0)
    assert dropped.cancel()
    gate.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert done == []


def test_closed_it_leaves_nobody_waiting() -> None:
    pool, gate = FairPool(1, "t"), threading.Event()
    pool.submit("a", gate.wait, 10)
    waiting = pool.submit("b", gate.wait, 10)
    pool.close()
    gate.set()
    with pytest.raises(CancelledError):
        waiting.result(10)
