"""What a tenant may use, one hash in Redis for each: `<prefix>tenant:<name>`.

The ledger's Lua reads `weight`, `max_running` and `max_queued` from it, `service.limits` the other
two. A field that is not there is no bound; a tenant that is not there, as `local` at first, has
none.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import redis

from service.auth import check_tenant
from service.errors import RequestError
from service.ledger import answering
from service.settings import Settings

MOST = 10**9


@dataclass(frozen=True)
class Tenant:
    """Bounds; None: no bound.

    weight: share of the workers against other tenants' who wait too.
    max_running, max_queued: jobs at the same time.
    requests_per_minute: new jobs, as a bucket that holds a minute's.
    gpu_seconds_per_hour: by estimate when a job comes, by what it took when it has ended; a bucket
        that holds an hour's.
    """

    name: str
    weight: float = 1.0
    max_running: int | None = None
    max_queued: int | None = None
    requests_per_minute: int | None = None
    gpu_seconds_per_hour: int | None = None

    def bounds(self) -> dict[str, float | int | None]:
        """Every field but the name."""
        values = asdict(self)
        del values["name"]
        return values


BOUNDS = tuple(Tenant("none").bounds())


class Tenants:
    """Reads and writes them. Raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:tenant"

    def read(self, name: str) -> Tenant:
        """The tenant; one that nobody has set has no bounds."""
        with answering():
            fields: dict[Any, Any] = self._redis.hgetall(f"{self._prefix}:{name}")
        given = {field: float(fields[field]) for field in BOUNDS if field in fields}
        weight = given.pop("weight", 1.0)
        return Tenant(name, weight, **{field: int(value) for field, value in given.items()})

    def set(self, name: str, **bounds: float | int | None) -> Tenant:
        """Change some bounds and return all. None takes one away.

        Raises:
            RequestError: a name or a number that cannot be.
        """
        check_tenant(name)
        for field, value in bounds.items():
            _check(field, value)
        given: list[str | float | int] = []
        for field, value in bounds.items():
            given += [] if value is None else [field, value]
        none = [field for field, value in bounds.items() if value is None]
        with answering():
            pipe = self._redis.pipeline()
            pipe.sadd(f"{self._prefix}s", name)
            if given:
                pipe.hset(f"{self._prefix}:{name}", items=given)
            if none:
                pipe.hdel(f"{self._prefix}:{name}", *none)
            pipe.execute()
        return self.read(name)

    def listing(self) -> list[Tenant]:
        """All that were ever set, by name."""
        with answering():
            names = sorted(str(name) for name in self._redis.smembers(f"{self._prefix}s"))
        return [self.read(name) for name in names]


def _check(field: str, value: float | int | None) -> None:
    """Raises RequestError."""
    if field not in BOUNDS:
        raise RequestError(f"{field}: no such bound; there are {', '.join(BOUNDS)}.", field)
    if value is None:
        return
    if field == "weight":
        if not math.isfinite(value) or not 0.001 <= value <= 1000:
            raise RequestError("weight: must lie between 0.001 and 1000.", field)
    elif isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST:
        raise RequestError(f"{field}: must be a whole number from 0 to {MOST}.", field)
