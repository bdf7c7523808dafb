"""The ledger at the gateway's front: what every post and every poll asks of it, many at once.

An event loop cannot wait for Redis at each request, and a thread for each costs more than the
request. So what all requests ask while Redis works on the last batch goes to it in one go, over one
connection; and one sync of its file covers all jobs of a batch (group commit), whatever that takes.
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from service import scripts
from service.jobs import PLAIN, Job, Quota, Taken, Terms, job_of
from service.ledger import answering, connect_async, unknown
from service.settings import Settings
from service.submission import submission, taken

MOST = 64  # in one batch
NAMES = ("read", "submit")

log = logging.getLogger(__name__)

Asked = tuple[str, tuple[Any, ...], "asyncio.Future[list[Any]]"]


class Front:
    """`submit` and `read` of `service.ledger.Ledger`, for coroutines of one event loop. Raises as
    those do; close it before the loop ends."""

    def __init__(self, settings: Settings) -> None:
        self._prefix = f"{settings.key_prefix}:"
        self._max_queued = settings.max_queued
        # A connection may have died since its last use; scripts may be run twice.
        self._redis = connect_async(settings, "front", retry=Retry(NoBackoff(), 1))
        self._waiting: list[Asked] = []
        self._flusher: asyncio.Task[None] | None = None

    async def submit(
        self,
        ref: str,
        request: Mapping[str, Any],
        terms: Terms = PLAIN,
        quota: Quota | None = None,
    ) -> Taken:
        """See `Ledger.submit`."""
        args = submission(ref, request, terms, self._max_queued, quota)
        return taken(await self._run("submit", *args), self._max_queued)

    async def read(self, ref: str) -> Job:
        """See `Ledger.read`."""
        [answer] = await self._run("read", ref)
        if (job := job_of(ref, answer)) is None:
            raise unknown(ref)
        return job

    async def close(self) -> None:
        """Nobody asks any more."""
        if self._flusher is not None:
            await self._flusher
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()

    async def _run(self, name: str, *args: Any) -> list[Any]:
        answer = asyncio.get_running_loop().create_future()
        self._waiting.append((name, args, answer))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        with answering():
            found: list[Any] = await answer
        return found

    async def _flush(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            try:
                for (_, _, answer), found in zip(batch, await self._ask(batch), strict=True):
                    if answer.done():  # whoever asked has left
                        continue
                    if isinstance(found, BaseException):
                        answer.set_exception(found)
                    else:
                        answer.set_result(found)
            except Exception as bug:  # told to each who asked; who waits behind them has its turn
                log.exception("a batch of %d failed", len(batch))
                for _, _, answer in batch:
                    if not answer.done():
                        answer.set_exception(bug)
            finally:
                for _, _, answer in batch:  # at the end of the loop nobody waits for ever
                    answer.cancel()

    async def _ask(self, batch: list[Asked]) -> list[Any]:
        """An answer, or what went wrong, for each."""
        try:
            answers = await self._send(batch)
            unknown = [i for i, one in enumerate(answers) if isinstance(one, NoScriptError)]
            if unknown:
                for name in NAMES:
                    await self._redis.script_load(scripts.source(name))
                again = await self._send([batch[i] for i in unknown])
                for i, one in zip(unknown, again, strict=True):
                    answers[i] = one
        except redis.RedisError as error:
            return [error] * len(batch)
        return answers

    async def _send(self, batch: list[Asked]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for name, args, _ in batch:
            pipe.evalsha(_digest(name), 1, self._prefix, *args)
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers


@cache
def _digest(name: str) -> str:
    """By which Redis knows a script."""
    return hashlib.sha1(scripts.source(name).encode(), usedforsecurity=False).hexdigest()
