"""What many ask at once is answered to each as if it had asked alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.errors import IdempotencyConflict, LedgerDown, NotFound, QueueFull, RateLimited
from service.front import MOST, Front
from service.jobs import Terms
from service.ledger import Ledger, connect
from service.limits import Limits, standing_of
from service.tenants import Tenants
from tests.service.rig import request_of, start_redis
from workers.settings import Settings


def within(settings: Settings, act: Callable[[Front], Awaitable[None]]) -> None:
    """Runs it with a front that is closed again."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Front]:
        front = Front(settings)
        try:
            yield front
        finally:
            await front.close()

    async def run() -> None:
        async with opened() as front:
            await act(front)

    asyncio.run(run())


def test_a_crowd_gets_each_its_own_answer(settings: Settings, ledger: Ledger) -> None:
    """More than one batch, of both scripts, and one that fails among them."""

    async def act(front: Front) -> None:
        refs = [f"t/{number}" for number in range(2 * MOST + 7)]
        made = await asyncio.gather(*(front.submit(ref, request_of(ref[2:])) for ref in refs))
        assert [one.ref for one in made] == refs
        assert [one.job.request for one in made if one.job] == [request_of(r[2:]) for r in refs]
        asked = [front.read(ref) for ref in ("t/3", "t/none", "t/0")]
        three, none, zero = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(none, NotFound)
        assert {getattr(one, "ref", "") for one in (three, zero)} == {"t/3", "t/0"}

    within(settings, act)
    assert ledger.books().submitted == 2 * MOST + 7


def test_it_says_what_the_ledger_says(settings: Settings, ledger: Ledger) -> None:
    async def act(front: Front) -> None:
        made = await front.submit("t/a", request_of("anna"))
        assert made.job is not None and made.job.fields == ledger.read("t/a").fields
        assert (await front.submit("t/a", request_of("anna"))).job is None  # the same again
        key = Terms(key="k", digest="d")
        assert (await front.submit("t/b", request_of("bob"), key)).ref == "t/b"
        assert (await front.submit("t/c", request_of("bob"), key)).ref == "t/b"
        with pytest.raises(IdempotencyConflict):
            await front.submit("t/d", request_of("bob"), Terms(key="k", digest="other"))

    within(settings, act)
    assert ledger.books().submitted == 2


def test_the_quota_is_taken_with_the_job_or_there_is_no_job(
    settings: Settings, ledger: Ledger
) -> None:
    client = connect(settings)
    limits = Limits(client, settings)
    Tenants(client, settings).set("acme", requests_per_minute=1)

    async def act(front: Front) -> None:
        quota = limits.quota("miniature", 2.5)
        made = await front.submit("acme/a", request_of("anna"), quota=quota)
        assert standing_of(made.standing).cost_s == 2.5
        refused = await front.submit("acme/b", request_of("anna"), quota=quota)
        assert refused.ref == "" and refused.job is None
        with pytest.raises(RateLimited):
            standing_of(refused.standing)

    within(settings, act)
    assert ledger.books().submitted == 1
    assert ledger.read("acme/a").text("cost") == "2.5"
    prefix = f"{settings.key_prefix}:"
    assert client.hget(f"{prefix}reservation:acme/a", "job") == "1"
    assert not client.exists(f"{prefix}reservation:acme/b")
    claim = ledger.claim("h")
    assert claim is not None and ledger.commit(claim, {}) == "ok"
    assert limits.settle("acme/a", 1.0) and not limits.settle("acme/a", 1.0)
    client.close()


def test_a_full_queue_is_told(settings: Settings, ledger: Ledger) -> None:
    async def act(front: Front) -> None:
        await front.submit("t/a", request_of("anna"))
        with pytest.raises(QueueFull, match="1 jobs are waiting"):
            await front.submit("t/b", request_of("anna"))

    within(settings.model_copy(update={"max_queued": 1}), act)


def test_redis_that_forgot_the_scripts_is_told_them_again(
    settings: Settings, ledger: Ledger
) -> None:
    client = connect(settings)

    async def act(front: Front) -> None:
        await front.submit("t/a", request_of("anna"))
        client.script_flush()
        client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert (await front.read("t/a")).ref == "t/a"

    within(settings, act)
    client.close()


def test_who_leaves_takes_no_others_answer_along(settings: Settings, ledger: Ledger) -> None:
    async def act(front: Front) -> None:
        await front.submit("t/a", request_of("anna"))
        asked = [asyncio.create_task(front.read("t/a")) for _ in range(5)]
        await asyncio.sleep(0)
        asked[2].cancel()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(found[2], asyncio.CancelledError)
        assert [one.ref for one in found if not isinstance(one, BaseException)] == ["t/a"] * 4

    within(settings, act)


def test_no_redis_is_said_to_each_and_it_goes_on_when_it_is_back(tmp_path: Path) -> None:
    settings = Settings(redis_url=f"unix://{tmp_path}/s", redis_timeout_s=0.3)

    async def act(front: Front) -> None:
        found = await asyncio.gather(
            *(front.read("t/a") for _ in range(3)), return_exceptions=True
        )
        assert [type(one) for one in found] == [LedgerDown] * 3
        server = await asyncio.to_thread(start_redis, tmp_path)
        try:
            assert (await front.submit("t/a", request_of("anna"))).ref == "t/a"
        finally:
            await asyncio.to_thread(server.stop)

    within(settings, act)
