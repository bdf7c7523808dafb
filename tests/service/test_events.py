"""Events over a real Redis: everybody gets each of them once, in order, whatever happens."""

import asyncio
import json
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis

from service import events as module
from service.errors import LedgerDown, NotFound, QueueFull, RequestError
from service.events import START, Event, Events, EventStream, Id, parse_id
from service.ledger import connect
from tests.service.rig import start_redis
from workers.settings import Settings

REF = "local/video_1"


def run(what: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(what, 120)

    asyncio.run(limited())


@pytest.fixture
def client(settings: Settings) -> redis.Redis:
    return connect(settings)


def emit(
    client: redis.Redis, settings: Settings, *numbers: int, kind: str = "progress", ref: str = REF
) -> list[str]:
    """Append events as the ledger's Lua does; returns their ids."""
    key = f"{settings.key_prefix}:events:{ref}"
    pipe = client.pipeline()  # synced once: a disk that others use takes 20 ms each
    for n in numbers:
        pipe.xadd(key, {"kind": kind, "data": json.dumps({"n": n})})
    return [str(id) for id in pipe.execute()]


async def never(last: Id) -> bool:
    return False


def numbers(frames: list[bytes]) -> list[int]:
    """What `emit` numbered, as it arrived."""
    lines = [line for frame in frames for line in frame.decode().splitlines()]
    return [json.loads(line[6:])["n"] for line in lines if line.startswith("data: ")]


async def collect(stream: AsyncIterator[bytes], until: int | None = None) -> list[bytes]:
    """The frames up to the stream's end, or up to that number."""
    found: list[bytes] = []
    async for frame in stream:
        found.append(frame)
        if until is not None and numbers([frame]) == [until]:
            break
    return found


def test_an_event_on_the_wire() -> None:
    event = Event("17-3", "progress", '{"step":1}')
    assert event.frame == b'id: 17-3\nevent: progress\ndata: {"step":1}\n\n'


@pytest.mark.parametrize(
    ("text", "id"), [("", (0, 0)), ("17", (17, 0)), ("17-3", (17, 3)), ("0-0", (0, 0))]
)
def test_ids(text: str, id: Id) -> None:
    assert parse_id(text, "after") == id


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1-2-3", "$", "+", "٣", f"{2**64}", "1 ", "1\n"])
def test_what_is_no_id_is_told(text: str) -> None:
    with pytest.raises(RequestError, match="after: must be the id of an event") as told:
        parse_id(text, "after")
    assert told.value.param == "after"


def test_what_was_is_replayed_and_what_comes_follows(
    settings: Settings, client: redis.Redis
) -> None:
    async def scene() -> None:
        ids = emit(client, settings, *range(5))
        events = Events(settings)
        whole = asyncio.create_task(collect(events.listen(REF, START, never)))
        rest = asyncio.create_task(collect(events.listen(REF, parse_id(ids[2], ""), never)))
        await asyncio.sleep(0.3)
        late = asyncio.create_task(collect(events.listen(REF, START, never)))
        emit(client, settings, *range(5, 250))
        emit(client, settings, 250, kind="completed")
        emit(client, settings, 251)
        assert numbers(await whole) == numbers(await late) == list(range(251))
        assert numbers(await rest) == list(range(3, 251))
        assert (await whole)[0] == b"retry: 1000\n\n"
        await events.close()

    run(scene())


@pytest.mark.parametrize("kind", ["completed", "failed", "cancelled"])
def test_a_stream_ends_with_its_job(settings: Settings, client: redis.Redis, kind: str) -> None:
    async def scene() -> None:
        events = Events(settings)
        emit(client, settings, 1, kind="started")
        emit(client, settings, 2, kind="requeued")
        emit(client, settings, 3, kind=kind)
        assert numbers(await collect(events.listen(REF, START, never))) == [1, 2, 3]
        assert events._listeners == set()
        await events.close()

    run(scene())


def test_five_hundred_listeners_cost_one_connection(
    settings: Settings, client: redis.Redis
) -> None:
    async def scene() -> None:
        events = Events(settings)
        refs = [f"local/video_{n}" for n in range(50)]
        tasks = [
            asyncio.create_task(collect(events.listen(refs[n % 50], START, never)))
            for n in range(500)
        ]
        for ref in refs:
            emit(client, settings, *range(20), ref=ref)
        assert all(await asyncio.gather(*(events.newer(ref, START) for ref in refs)))
        ours = [c for c in client.client_list() if c["name"] == f"{settings.key_prefix}-events"]
        for ref in refs:
            emit(client, settings, 20, kind="failed", ref=ref)
        assert all(numbers(found) == list(range(21)) for found in await asyncio.gather(*tasks))
        assert len(ours) == 1
        await events.close()

    run(scene())


def test_nobody_misses_or_repeats_an_event_when_redis_dies(settings: Settings) -> None:
    async def scene(folder: Path) -> None:
        here = settings.model_copy(
            update={"redis_url": f"unix://{folder / 's'}", "redis_timeout_s": 1.0}
        )
        server = start_redis(folder)
        client = connect(here)
        events = Events(here)
        emit(client, here, *range(10))
        task = asyncio.create_task(collect(events.listen(REF, START, never)))
        late = asyncio.create_task(collect(events.listen(REF, (1, 0), never)))
        await asyncio.sleep(0.5)
        for death in range(2):
            assert server._process is not None
            server._process.send_signal(signal.SIGKILL)
            server._process.wait()
            await asyncio.sleep(0.5)
            with pytest.raises(LedgerDown):
                await events.newer(REF, START)
            server.stop()
            server = start_redis(folder)
            first = 10 * (death + 1)
            emit(client, here, *range(first, first + 10))
            await asyncio.sleep(0.2)
        emit(client, here, 30, kind="completed")
        assert numbers(await task) == numbers(await late) == list(range(31))
        await events.close()
        client.close()
        server.stop()

    folder = Path(tempfile.mkdtemp(prefix="tr"))
    try:
        run(scene(folder))
    finally:
        shutil.rmtree(folder)


def test_who_reads_slowly_is_waited_for_and_holds_up_nobody(
    settings: Settings, client: redis.Redis
) -> None:
    async def scene() -> None:
        events = Events(settings)
        slow = events.listen(REF, START, never)
        assert await anext(slow) == b"retry: 1000\n\n"
        emit(client, settings, *range(1000))
        quick = await collect(events.listen(REF, START, never), until=999)
        (listener,) = [one for one in events._listeners if one.queue.qsize()]
        assert numbers(quick) == list(range(1000)) and listener.queue.qsize() == module.QUEUE
        assert numbers(await collect(slow, until=999)) == list(range(1000))
        await events.close()

    run(scene())


def test_who_takes_nothing_is_cut(
    settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_LIMIT_S", 0.2)
    started: list[str] = []

    async def scene() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            started.append(message["type"])
            if len(started) > 1:
                await asyncio.sleep(60)

        events = Events(settings)
        answer = EventStream(events.listen(REF, START, never))
        await asyncio.wait_for(answer({"type": "http", "asgi": {}}, receive, send), 10)
        assert started == ["http.response.start", "http.response.body"]
        assert events._listeners == set()
        await events.close()

    run(scene())


@pytest.mark.parametrize("how", ["gone", "over", "away"])
def test_a_silent_stream_asks_whether_it_is_over(
    settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.4)
    asked: list[Id] = []

    async def over(last: Id) -> bool:
        asked.append(last)
        if how == "gone":
            raise NotFound("no such video")
        if how == "away" and len(asked) == 1:
            raise LedgerDown("no answer")
        return True

    async def scene() -> None:
        (id,) = emit(client, settings, 7)
        events = Events(settings)
        found = await collect(events.listen(REF, START, over))
        assert numbers(found) == [7] and set(asked) == {parse_id(id, "")}
        assert found.count(b": nothing new\n\n") == (1 if how == "away" else 0)
        await events.close()

    run(scene())


def test_who_hangs_up_in_the_midst_costs_the_others_nothing(
    settings: Settings, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEEP_ALIVE_S", 0.01)

    async def scene() -> None:
        events = Events(settings)
        over = partial(events.newer, "local/other")
        for _ in range(20):
            async with anyio.create_task_group() as group:  # as Starlette ends an answer
                for _ in range(50):
                    group.start_soon(collect, events.listen(REF, START, over))
                await asyncio.sleep(0.03)
                group.cancel_scope.cancel()
        emit(client, settings, 7, kind="completed")
        assert numbers(await collect(events.listen(REF, START, over))) == [7]
        assert events._listeners == set()
        await events.close()

    run(scene())


def test_whether_there_is_more(settings: Settings, client: redis.Redis) -> None:
    async def scene() -> None:
        events = Events(settings)
        assert not await events.newer(REF, START)
        first, last = emit(client, settings, 1, 2)
        assert await events.newer(REF, START) and await events.newer(REF, parse_id(first, ""))
        assert not await events.newer(REF, parse_id(last, ""))
        await events.close()

    run(scene())


def test_who_leaves_ends_every_stream(settings: Settings, client: redis.Redis) -> None:
    async def scene() -> None:
        events = Events(settings)
        emit(client, settings, *range(1000))
        busy = events.listen(REF, START, never)
        await anext(busy)
        idle = asyncio.create_task(collect(events.listen("local/idle", START, never)))
        await asyncio.sleep(1)
        events.leave()
        assert numbers(await idle) == []
        assert await collect(busy) == []
        await events.close()

    run(scene())


def test_there_is_an_end_to_listeners(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LISTENERS", 1)

    async def scene() -> None:
        events = Events(settings)
        events.check_room()
        stream = events.listen(REF, START, never)
        await anext(stream)
        with pytest.raises(QueueFull):
            events.check_room()
        await events.close()

    run(scene())
