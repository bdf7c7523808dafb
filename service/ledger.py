"""The record of every job, in Redis: who may work on it, how far it is, how it ended.

A job is `queued` until a worker claims it. A claim gives a lease and a fencing token; heartbeats
prolong the lease, and whoever comes with another token than the last one given is refused, so a
worker that was thought dead cannot overwrite what its successor did. `reap` puts jobs whose lease
ran out back into the queue, up to a cap of starts. All of it is Lua on Redis time
(`service/scripts.py`). The gateway and the workers share this file; it imports neither.

The Redis behind it should run `appendfsync always` and `noeviction`.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service import scripts
from service.errors import LedgerDown, NotFound, QueueFull
from service.settings import Settings

log = logging.getLogger(__name__)

CANCELLED = "Cancelled on request."
TERMINAL = ("completed", "failed")
LOST = "Its worker died at each of {attempts} starts; the job is given up."


@dataclass(frozen=True)
class Claim:
    """The right to work on one job. `token` fences, `attempt` counts from 1."""

    job_id: str
    token: str
    attempt: int
    request: dict[str, Any]


@dataclass(frozen=True)
class Books:
    """The ledger's balance: numbers of jobs. They must always add up."""

    submitted: int
    queued: int
    running: int
    completed: int
    failed: int

    @property
    def balanced(self) -> bool:
        """submitted = queued + running + terminal."""
        return self.submitted == self.queued + self.running + self.completed + self.failed


@dataclass(frozen=True)
class Job:
    """One record, as read. Times in ms since 1970 by Redis's clock.

    `request` and `result` are JSON objects that the gateway and the worker wrote; `fields` is the
    rest of the hash. `place` is 0 for the next job of the queue, -1 for one that is not in it.
    For a waiting job, `in_hand` jobs are running, which will together take `rest_ms` more.
    """

    id: str
    state: str
    request: dict[str, Any]
    result: dict[str, Any]
    fields: Mapping[str, str]
    place: int
    now_ms: int
    mean_ms: int | None
    in_hand: int = 0
    rest_ms: int = 0

    def number(self, name: str) -> int:
        """A whole number of the record; 0 where it was never written."""
        return int(float(self.fields.get(name) or 0))

    def text(self, name: str) -> str | None:
        """A text of the record; None where it was never written or is empty."""
        return self.fields.get(name) or None

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in TERMINAL


def connect(settings: Settings) -> redis.Redis:
    """A client that answers or fails within about two redis_timeout_s, and never queues callers.

    One immediate retry, because a pooled connection may have died since its last use; every
    script is safe to run twice.
    """
    pool = redis.BlockingConnectionPool.from_url(
        settings.redis_url,
        decode_responses=True,
        max_connections=64,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        retry=Retry(NoBackoff(), 1),
        health_check_interval=0,
    )
    return redis.Redis(connection_pool=pool)


@contextmanager
def answering() -> Iterator[None]:
    """Turns every failure of Redis into LedgerDown, with one message for the client."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("ledger: %s: %s", type(error).__name__, error)
        raise LedgerDown(
            "The job ledger (Redis) does not answer. Nothing was changed; try again shortly."
        ) from error


class Ledger:
    """Transitions and reads. Every method raises LedgerDown when Redis does not answer in time."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._lease_ms = int(settings.lease_s * 1000)
        self._backoff_ms = int(settings.backoff_s * 1000)
        self._max_attempts = settings.max_attempts
        self._max_queued = settings.max_queued
        self._scripts: dict[str, Any] = {}

    def _run(self, source: str, *args: str | int | float) -> list[Any]:
        with answering():
            script = self._scripts.setdefault(source, self._redis.register_script(source))
            answer: list[Any] = script(keys=[self._prefix], args=args)
        return answer

    def ping(self) -> None:
        """Raises LedgerDown unless Redis answers."""
        with answering():
            self._redis.ping()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    # the gateway's side

    def submit(self, job_id: str, request: Mapping[str, Any]) -> None:
        """Accept a job. Submitting the same id again changes nothing.

        Raises:
            QueueFull: as many jobs wait as the operator allows.
        """
        word = self._run(scripts.SUBMIT, job_id, json.dumps(request), self._max_queued)[0]
        if word == "full":
            raise QueueFull(
                f"{self._max_queued} jobs are waiting already, which is the limit. Try again later."
            )

    def read(self, job_id: str) -> Job:
        """Raises NotFound for an unknown id."""
        job = _job(job_id, self._run(scripts.READ, job_id))
        if job is None:
            raise NotFound(f"There is no video {job_id!r:.80}.")
        return job

    def page(self, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """Up to `limit` jobs in order of submission, after the job `after`; whether more follow.

        Raises:
            NotFound: `after` is unknown.
        """
        edge = f"({self._seq(after)}" if after else ("+inf" if newest_first else "-inf")
        command = "ZREVRANGEBYSCORE" if newest_first else "ZRANGEBYSCORE"
        far = "-inf" if newest_first else "+inf"
        with answering():
            ids: list[str] = self._redis.execute_command(
                command, f"{self._prefix}all", edge, far, "LIMIT", 0, limit + 1
            )
        jobs = [_job(name, self._run(scripts.READ, name)) for name in ids[:limit]]
        return [job for job in jobs if job is not None], len(ids) > limit

    def _seq(self, job_id: str) -> str:
        with answering():
            seq = self._redis.hget(f"{self._prefix}job:{job_id}", "seq")
        if seq is None:
            raise NotFound(f"There is no video {job_id!r:.80} to list after.")
        return str(seq)

    def cancel(self, job_id: str) -> bool:
        """Ask a job to stop: at once if it waits, at its next step if it runs.

        Returns False when it had ended already. Raises NotFound.
        """
        word = self._run(scripts.CANCEL, job_id, CANCELLED)[0]
        if word == "gone":
            raise NotFound(f"There is no video {job_id!r:.80}.")
        return bool(word == "ok")

    def delete(self, job_id: str) -> str:
        """Forget a job and remember that its blobs must go. Returns the state it had, or
        `deleted` while an earlier deletion still waits for its sweep.

        A worker that has it in hand is told `gone` at its next heartbeat. Raises NotFound.
        """
        word = str(self._run(scripts.DELETE, job_id)[0])
        if word == "gone":
            raise NotFound(f"There is no video {job_id!r:.80}.")
        return word

    def books(self) -> Books:
        """The balance, read in one instant."""
        return Books(*self._run(scripts.BOOKS))

    # the worker's side

    def claim(self, job_id: str, holder: str) -> Claim | str:
        """Take a queued job, or the reason why not: gone, ended, held or early.

        `holder` must be new for each try to claim, so that a claim whose answer got lost can be
        asked for again.
        """
        word, *rest = self._run(scripts.CLAIM, job_id, holder, self._lease_ms)
        if word != "claimed":
            return str(word)
        token, attempt, request = rest
        return Claim(job_id, token, int(attempt), json.loads(request))

    def beat(self, claim: Claim, progress: int = 0, **fields: str | int | float) -> str:
        """Prolong the lease and write how far the job is; `progress` (percent) never falls.

        Returns ok, or why to stop: cancel, stale (another worker has it) or gone (deleted).
        """
        pairs = [part for pair in fields.items() for part in pair]
        answer = self._run(
            scripts.BEAT, claim.job_id, claim.token, self._lease_ms, progress, *pairs
        )
        return str(answer[0])

    def commit(self, claim: Claim, result: Mapping[str, Any]) -> str:
        """End a job well. Returns ok, or why it was refused: cancel, stale or gone."""
        return str(self._run(scripts.COMMIT, claim.job_id, claim.token, json.dumps(result))[0])

    def fail(self, claim: Claim, code: str, message: str, retry: bool) -> str:
        """End a job badly, or queue it again while starts are left and `retry` is set.

        Returns ok, again, stale or gone.
        """
        starts = self._max_attempts if retry else 0
        answer = self._run(
            scripts.FAIL, claim.job_id, claim.token, code, message, starts, self._backoff_ms
        )
        return str(answer[0])

    def hand_back(self, claim: Claim) -> str:
        """Queue a job again at once, because this worker is leaving. Costs it no start."""
        return str(self._run(scripts.HAND_BACK, claim.job_id, claim.token)[0])

    # the reaper's side

    def reap(self) -> tuple[list[str], list[str]]:
        """Ids of jobs whose lease ran out: those queued again, and those given up."""
        message = LOST.format(attempts=self._max_attempts)
        again, failed = self._run(scripts.REAP, self._max_attempts, self._backoff_ms, message)
        return list(again), list(failed)

    def due(self, how_many: int, ring_after_s: float) -> list[str]:
        """The oldest queued jobs that may start now and were not rung for `ring_after_s`."""
        return list(self._run(scripts.DUE, how_many, int(ring_after_s * 1000)))

    def head(self, how_many: int) -> list[str]:
        """The jobs that will be started next."""
        with answering():
            found = self._redis.zrange(f"{self._prefix}queued", 0, how_many - 1)
        return [str(job_id) for job_id in found] if how_many else []

    def graves(self, age_s: float) -> list[str]:
        """Jobs deleted at least `age_s` ago whose blobs may need another sweep."""
        return list(self._run(scripts.GRAVES, int(age_s * 1000)))

    def bury(self, job_id: str) -> None:
        """Forget a deleted job for good: nothing of it is left anywhere."""
        with answering():
            self._redis.zrem(f"{self._prefix}graves", job_id)


def _job(job_id: str, answer: list[Any]) -> Job | None:
    """A Job from READ's answer, or None if there is no such record."""
    now, place, mean, in_hand, rest, flat = answer
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if not fields:
        return None
    return Job(
        id=job_id,
        state=fields.pop("state"),
        request=json.loads(fields.pop("request")),
        result=json.loads(fields.pop("result", "{}")),
        fields=fields,
        place=int(place),
        now_ms=int(now),
        mean_ms=int(mean) if mean else None,
        in_hand=int(in_hand),
        rest_ms=int(float(rest)),
    )
