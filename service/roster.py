"""Which workers are alive, and what each can do: one short-lived key per process in Redis.

`<prefix>workers:<id>` holds a JSON object and expires when its worker stops refreshing it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import redis

from service.ledger import answering
from service.settings import Settings

REMEMBERED_S = 1.0


@dataclass(frozen=True)
class WorkerState:
    """What a worker says of itself. `state`: starting, idle, busy or unhealthy.

    `role`: "generate", from request to video; "denoise", the same with encodings that a worker
    with the role "encode" has made.
    `tiers`: of `engine.tiers`, those that it serves; none while that is not known.
    `message` says why it is unhealthy; `digest` is its checkpoint's; `job` the ref in hand.
    `encoders`: what its encoders are called (`engine.encoder.digest_of`); a worker that only
    encodes has no other digest. `models`: digests of adapters that requests may name, by name.
    `runtime`: see `engine.runtime`; empty where it is left to the machine.
    """

    id: str
    state: str
    message: str = ""
    preset: str = ""
    digest: str = ""
    job: str = ""
    role: str = "generate"
    tiers: tuple[str, ...] = ()
    runtime: str = ""
    encoders: str = ""
    models: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> "WorkerState":
        """What was announced."""
        values = json.loads(text)
        return cls(**values | {"tiers": tuple(values.get("tiers", ()))})

    @property
    def healthy(self) -> bool:
        """Whether it can take jobs, now or after the one in hand."""
        return self.state in {"idle", "busy"}

    @property
    def makes_videos(self) -> bool:
        """Whether jobs are for it; a worker that only encodes helps another."""
        return self.role != "encode"


def tiers_of(workers: Sequence[WorkerState], known: tuple[str, ...]) -> tuple[str, ...]:
    """Of the known tiers those that some worker serves; all of them while none has said which."""
    said = [worker.tiers for worker in workers if worker.tiers]
    return tuple(tier for tier in known if not said or any(tier in tiers for tiers in said))


def models_of(workers: Sequence[WorkerState]) -> dict[str, set[str]]:
    """Adapters that some worker serves, by name: their digests, several while one is replaced."""
    found: dict[str, set[str]] = {}
    for worker in workers:
        for name, digest in worker.models.items() if worker.healthy else ():
            found.setdefault(name, set()).add(digest)
    return found


class Roster:
    """Announce and list workers. Raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:workers"
        self._ttl_ms = int(settings.lease_s * 1000)
        self._seen: tuple[float, list[WorkerState]] = -REMEMBERED_S, []

    def announce(self, worker: WorkerState) -> None:
        """Refresh a worker's entry; it vanishes if that stops for a lease's time."""
        with answering():
            pipe = self._redis.pipeline()
            pipe.sadd(self._prefix, worker.id)
            pipe.set(f"{self._prefix}:{worker.id}", json.dumps(asdict(worker)), px=self._ttl_ms)
            pipe.execute()

    def leave(self, worker_id: str) -> None:
        """Take a worker off the list at once."""
        with answering():
            self._redis.delete(f"{self._prefix}:{worker_id}")
            self._redis.srem(self._prefix, worker_id)

    def present(self) -> list[WorkerState]:
        """The workers that are alive, by id."""
        with answering():
            ids = sorted(str(name) for name in self._redis.smembers(self._prefix))
            keys = [f"{self._prefix}:{name}" for name in ids]
            values: list[Any] = list(self._redis.mget(keys)) if ids else []
            gone = [name for name, value in zip(ids, values, strict=True) if value is None]
            if gone:
                self._redis.srem(self._prefix, *gone)
        found = [WorkerState.from_json(value) for value in values if value is not None]
        self._seen = time.monotonic(), found
        return found

    def recall(self) -> list[WorkerState] | None:
        """As `present` said within the last second. Asks nobody."""
        when, found = self._seen
        return found if time.monotonic() - when < REMEMBERED_S else None
