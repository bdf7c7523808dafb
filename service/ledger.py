"""The record of every job, in Redis: who may work on it, how far it is, how it ended.

A job is `queued` until a worker claims it. Workers do not choose: a claim gives the job whose turn
it is, by the tenants' shares and, within a tenant, by priority and age. It comes with a lease and a
fencing token; heartbeats prolong the lease, and whoever comes with another token than the last one
given is refused, so a worker that was thought dead cannot overwrite what its successor did. `reap`
puts jobs whose lease ran out, or that do not get on, back into the queue, up to a cap of starts.
All of it is Lua on Redis time (`service/scripts.py`). The gateway and the workers share this file;
it imports neither.

A job is named by its `ref`, `<tenant>/<id>`, see `service.refs`. What the Redis behind it must
promise: `service.durable`.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio as aioredis
from redis.backoff import NoBackoff
from redis.retry import Retry

from engine.spec import Wish
from service import scripts
from service.errors import LedgerDown, NotFound
from service.jobs import PLAIN, Books, Claim, Job, Quota, Taken, Terms, job_of
from service.refs import id_of, tenant_of
from service.scripts import pairs
from service.settings import Settings
from service.submission import same, submission, taken

log = logging.getLogger(__name__)

CANCELLED = "Cancelled on request."
LOST = "Its worker died at each of {starts} starts; the job is given up."
STALLED = "It did not get on for {stall_s:g} s at each of {starts} starts; the job is given up."
ARRIVING_MS = 300_000  # as long as quota is held for a request on its way


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


def connect_async(settings: Settings, name: str, **given: Any) -> aioredis.Redis:
    """The same for one task of an event loop, over one connection that `CLIENT LIST` names."""
    pool = aioredis.BlockingConnectionPool.from_url(
        settings.redis_url,
        decode_responses=True,
        client_name=f"{settings.key_prefix}-{name}",
        max_connections=1,
        timeout=settings.redis_timeout_s,
        socket_timeout=settings.redis_timeout_s,
        socket_connect_timeout=settings.redis_timeout_s,
        **given,
    )
    return aioredis.Redis(connection_pool=pool)


@contextmanager
def answering() -> Iterator[None]:
    """Turns every failure of Redis into LedgerDown, with one message for the client."""
    try:
        yield
    except redis.RedisError as error:
        log.warning("ledger: %s: %s", type(error).__name__, error)
        raise LedgerDown(
            "The job ledger (Redis) does not answer. Try the same again shortly."
        ) from error


def unknown(ref: str) -> NotFound:
    """What is said of a job that is not there, or somebody else's."""
    return NotFound(f"There is no video {id_of(ref)!r:.80}.")


class Ledger:
    """Transitions and reads. Every method raises LedgerDown when Redis does not answer in time."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._lease_ms = int(settings.lease_s * 1000)
        self._stall_s = settings.stall_s
        self._backoff_ms = int(settings.backoff_s * 1000)
        self._max_attempts = settings.max_attempts
        self._max_queued = settings.max_queued
        self._scripts: dict[str, Any] = {}

    def _run(self, name: str, *args: str | int | float) -> list[Any]:
        with answering():
            if name not in self._scripts:
                self._scripts[name] = self._redis.register_script(scripts.source(name))
            answer: list[Any] = self._scripts[name](keys=[self._prefix], args=args)
        return answer

    def ping(self) -> None:
        """Raises LedgerDown unless Redis answers."""
        with answering():
            self._redis.ping()

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    # the gateway's side

    def submit(
        self,
        ref: str,
        request: Mapping[str, Any],
        terms: Terms = PLAIN,
        quota: Quota | None = None,
    ) -> Taken:
        """Accept a job; what is taken may be an earlier one, if `terms.key` was used before.
        Submitting the same ref again changes nothing.

        quota: what is reserved with it, unless a reservation of this ref is there; its standing may
            be a refusal. Without one, `terms.cost` counts.

        Raises:
            QueueFull: as many jobs wait as the operator allows, in all or of this tenant.
            IdempotencyConflict: the key was used for another request.
            LedgerDown: also where it took so long that its pictures are being swept.
        """
        args = submission(ref, request, terms, self._max_queued, quota)
        return taken(self._run("submit", *args), self._max_queued)

    def arrive(self, ref: str, terms: Terms) -> tuple[str, bool]:
        """The ref that this request stands for, and whether its job is there: its own, or that of
        an equal request before it, also of one that is still on its way.

        Raises IdempotencyConflict.
        """
        if not terms.key:
            return ref, False
        word, *rest = self._run(
            "arrive",
            tenant_of(ref),
            terms.key,
            terms.digest,
            ref,
            ARRIVING_MS,
            int(terms.honour),
        )
        return same(word, rest), word == "again"

    def withdraw(self, ref: str, terms: Terms) -> None:
        """A request was refused after all: its key may be used for another one."""
        if terms.key:
            self._run("withdraw", tenant_of(ref), terms.key, ref)

    def read(self, ref: str) -> Job:
        """Raises NotFound for an unknown one."""
        [job] = self._read([ref])
        if job is None:
            raise unknown(ref)
        return job

    def _read(self, refs: Sequence[str]) -> list[Job | None]:
        found = self._run("read", *refs)
        return [job_of(ref, answer) for ref, answer in zip(refs, found, strict=True)]

    def page(
        self, tenant: str, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """Up to `limit` of a tenant's jobs in order of submission, after the job `after` (a ref);
        whether more follow.

        Raises:
            NotFound: `after` is unknown.
        """
        edge = f"({self._seq(after)}" if after else ("+inf" if newest_first else "-inf")
        command = "ZREVRANGEBYSCORE" if newest_first else "ZRANGEBYSCORE"
        far = "-inf" if newest_first else "+inf"
        with answering():
            refs: list[str] = self._redis.execute_command(
                command, f"{self._prefix}all:{tenant}", edge, far, "LIMIT", 0, limit + 1
            )
        jobs = self._read(refs[:limit]) if refs else []
        return [job for job in jobs if job is not None], len(refs) > limit

    def _seq(self, ref: str) -> str:
        with answering():
            seq = self._redis.hget(f"{self._prefix}job:{ref}", "seq")
        if seq is None:
            raise NotFound(f"There is no video {id_of(ref)!r:.80} to list after.")
        return str(seq)

    def cancel(self, ref: str) -> bool:
        """Ask a job to stop: at once if it waits, at its next step if it runs.

        Returns False when it had ended already. Raises NotFound.
        """
        word = self._run("cancel", ref, CANCELLED)[0]
        if word == "gone":
            raise unknown(ref)
        return bool(word == "ok")

    def delete(self, ref: str) -> str:
        """Forget a job and remember that its blobs must go. Returns the state it had, or
        `deleted` while an earlier deletion still waits for its sweep.

        A worker that has it in hand is told `gone` at its next heartbeat. Raises NotFound.
        """
        word = str(self._run("delete", ref)[0])
        if word == "gone":
            raise unknown(ref)
        return word

    def books(self) -> Books:
        """The balance, read in one instant."""
        return Books(*self._run("books"))

    def figures(self) -> dict[str, Any]:
        """What `service.metrics` tells, read in one instant; times in ms."""
        found: dict[str, Any] = json.loads(self._run("figures", self._lease_ms)[0])
        return found

    def overview(self) -> dict[str, Any]:
        """What `service.routes.ops` tells; times in ms. Empty lists come as empty objects."""
        found: dict[str, Any] = json.loads(self._run("ops", self._lease_ms)[0])
        return found

    # the worker's side

    def claim(self, holder: str, worker: str = "", tiers: Sequence[str] = ()) -> Claim | None:
        """Take the job whose turn it is, if there is one.

        Args:
            holder: new for each try to claim, so that a claim whose answer got lost can be asked
                for again.
            worker: who works on it, for the record.
            tiers: those that this worker can make; none: all.
        """
        word, *rest = self._run("claim", holder, self._lease_ms, worker, *tiers)
        if word != "claimed":
            return None
        ref, token, attempt, request, *others = rest
        return Claim(ref, token, int(attempt), json.loads(request), *others)

    def wanted(self, tiers: Sequence[str] = ()) -> bool:
        """Whether a claim would give a worker with these tiers a job now."""
        return bool(self._run("wanted", *tiers))

    def beat(
        self, claim: Claim, progress: int = 0, moved: bool = False, **fields: str | int | float
    ) -> str:
        """Prolong the lease and write how far the job is; `progress` (percent) never falls.

        moved: the work itself says so, not a thread beside it; without that for `stall_s`, the
        job is taken away.
        Returns ok, or why to stop: cancel, stale (another worker has it) or gone (deleted).
        """
        told = pairs(fields)
        lease = self._lease_ms
        answer = self._run("beat", claim.ref, claim.token, lease, progress, int(moved), *told)
        return str(answer[0])

    def word(self, claim: Claim) -> str:
        """What `beat` would answer, for who has nothing to write; no sync of the file is due."""
        return str(self._run("word", claim.ref, claim.token)[0])

    def commit(self, claim: Claim, result: Mapping[str, Any]) -> str:
        """End a job well. Returns ok, or why it was refused: cancel, stale or gone."""
        spec = claim.request.get("spec", {})
        length_ms = round(1000 * spec.get("num_frames", 0) / spec.get("fps", 1))
        timings = {name.removesuffix("_s"): s for name, s in result.get("timings", {}).items()}
        stages = pairs({stage: round(1000 * seconds) for stage, seconds in timings.items()})
        told = (json.dumps(result), length_ms, _share(claim.request, result), *stages)
        return str(self._run("commit", claim.ref, claim.token, *told)[0])

    def fail(self, claim: Claim, code: str, message: str, retry: bool) -> str:
        """End a job badly, or queue it again while starts are left and `retry` is set.

        Returns ok, again, stale or gone.
        """
        starts = self._max_attempts if retry else 0
        answer = self._run(
            "fail", claim.ref, claim.token, code, message, starts, self._backoff_ms
        )
        return str(answer[0])

    def hand_back(self, claim: Claim) -> str:
        """Queue a job again at once, because this worker is leaving. Costs it no start."""
        return str(self._run("hand_back", claim.ref, claim.token)[0])

    def deletions(self) -> int:
        """How many jobs were ever deleted: a change says that `gone` has news."""
        with answering():
            return int(self._redis.get(f"{self._prefix}deletions") or 0)

    def gone(self, refs: Collection[str]) -> set[str]:
        """Those of which there is no record."""
        ordered = sorted(refs)
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for ref in ordered:
                pipe.exists(f"{self._prefix}job:{ref}")
            found = pipe.execute() if ordered else []
        return {ref for ref, there in zip(ordered, found, strict=True) if not there}

    # the reaper's side

    def reap(self) -> tuple[list[str], list[str]]:
        """Refs of jobs whose worker is lost or does not get on: queued again, and given up.

        What ran out while nobody called this for half a lease is renewed once: the ledger itself
        may have been away, and the workers well.
        """
        starts = self._max_attempts
        lost = LOST.format(starts=starts)
        stalled = STALLED.format(starts=starts, stall_s=self._stall_s)
        stall_ms = int(self._stall_s * 1000)
        waits = (self._backoff_ms, lost, stall_ms, stalled, self._lease_ms)
        again, failed = self._run("reap", starts, *waits)
        return list(again), list(failed)

    def due(self, how_many: int, ring_after_s: float) -> list[str]:
        """The next jobs that may start and were not rung for `ring_after_s`, longer each time."""
        return list(self._run("due", how_many, int(ring_after_s * 1000)))

    def head(self, how_many: int) -> list[str]:
        """The jobs that will be started next."""
        return list(self._run("ahead", how_many))

    def expired(self, age_s: float) -> list[str]:
        """Jobs that ended at least `age_s` ago."""
        return list(self._run("expired", int(age_s * 1000)))

    def graves(self, age_s: float) -> list[str]:
        """Jobs deleted at least `age_s` ago whose blobs may need another sweep."""
        return list(self._run("graves", int(age_s * 1000)))

    def compact(self) -> None:
        """Have Redis write its file anew, without what was deleted; it does so beside its work."""
        try:
            with answering():
                self._redis.bgrewriteaof()
        except LedgerDown as error:  # or where Redis forbids it, or is at it already
            log.info("the ledger's file is not written anew now: %s", error.__cause__)

    def bury(self, ref: str) -> None:
        """Forget a deleted job for good: nothing of it is left anywhere."""
        with answering():
            self._redis.zrem(f"{self._prefix}graves", ref)


def _share(request: Mapping[str, Any], result: Mapping[str, Any]) -> float:
    """Of what the request was estimated at, how much was made: candidates and their forwards."""
    most = Wish(**request.get("wish", {})).most
    forwards = result.get("forwards") or {"computed": 1, "asked": 1}
    made = len(result.get("candidates", [])) or 1
    return made / most * float(forwards["computed"] / forwards["asked"])
