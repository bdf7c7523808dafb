"""Two ledgers for `bench.fleet`, which must give out the same jobs in the same order.

`Real` is the service's ledger over a real Redis: its Lua, but for one line. The scripts take their
time from Redis's own clock; here that line reads a key, so that a day passes as fast as the calls
are made. Heartbeats, thousands a second in a large fleet, are told by one: a lease that lasts until
its worker dies.

`Model` is what those scripts do to turns and lists, in plain Python, for fleets that are too large
for that: start-time fair queueing (Goyal, Vin, Cheng 1996) as `service/lua/head.lua` has it, in the
same arithmetic. `bench.fleet` holds one against the other, start by start.

Times are whole ms.
"""

import heapq
from collections import defaultdict
from typing import Protocol

import redis

from service import scripts
from service.jobs import Claim, Terms
from service.ledger import Ledger
from service.refs import tenant_of
from service.settings import Settings

CLOCK = "local t = redis.call('TIME')\n"
OURS = (
    "local ms = tonumber(redis.call('GET', p .. 'clock'))\n"
    "local t = {math.floor(ms / 1000), (ms % 1000) * 1000}\n"
)
FOR_EVER_MS = 10**10


class Queue(Protocol):
    """What a fleet asks of a ledger. A job is named by its ref, `<tenant>/<number>`."""

    def submit(self, now: int, ref: str, cost: float) -> None:
        """Accept a job; cost: in GPU-seconds, as estimated."""

    def claim(self, now: int) -> str | None:
        """The job whose turn it is."""

    def commit(self, now: int, ref: str) -> None:
        """A job has ended well."""

    def hand_back(self, now: int, ref: str) -> None:
        """Its worker leaves."""

    def expire(self, now: int, ref: str) -> int:
        """Its worker is dead, and its lease is over now. Returns when it may be claimed again."""

    def sizes(self) -> tuple[int, int]:
        """Jobs that wait, and jobs in hand: the two sets that KEDA asks for."""


def timed(source: str) -> str:
    """A script that reads our clock. Raises ValueError unless exactly one line reads Redis's."""
    if source.count(CLOCK) != 1 or source.count("'TIME'") != 1:
        raise ValueError("the scripts take their time from elsewhere now")
    return source.replace(CLOCK, OURS)


class Real:
    """The ledger. client: of a Redis that this bench may fill."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis, self._prefix = client, f"{settings.key_prefix}:"
        self._ledger = Ledger(client, settings)
        self._lease_ms = int(settings.lease_s * 1000)
        for name in ("submit", "claim", "beat", "commit", "hand_back", "reap"):
            script = client.register_script(timed(scripts.source(name)))
            self._ledger._scripts[name] = script
        self._claims: dict[str, Claim] = {}
        self._count = 0

    def submit(self, now: int, ref: str, cost: float) -> None:
        """See Queue."""
        self._set(now)
        self._ledger.submit(ref, {"spec": {}}, Terms(cost=cost))

    def claim(self, now: int) -> str | None:
        """See Queue."""
        self._set(now)
        self._count += 1
        found = self._ledger.claim(f"holder-{self._count}")
        if found is None:
            return None
        self._claims[found.ref] = found
        self._ledger._run("beat", found.ref, found.token, FOR_EVER_MS, 0, 0)
        return found.ref

    def commit(self, now: int, ref: str) -> None:
        """See Queue. Raises AssertionError where the ledger refuses."""
        self._set(now)
        assert self._ledger.commit(self._claims.pop(ref), {}) == "ok"

    def hand_back(self, now: int, ref: str) -> None:
        """See Queue."""
        self._set(now)
        assert self._ledger.hand_back(self._claims.pop(ref)) == "ok"

    def expire(self, now: int, ref: str) -> int:
        """See Queue. Of the reaper's rounds the last that finds nothing, and the one that finds."""
        claim = self._claims.pop(ref)
        self._set(now - 1)
        self._ledger.reap()
        self._ledger._run("beat", ref, claim.token, 1, 0, 0)
        self._set(now)
        again, failed = self._ledger.reap()
        assert (again, failed) == ([ref], [])
        return int(self._ledger.read(ref).number("not_before_ms"))

    def sizes(self) -> tuple[int, int]:
        """See Queue."""
        books = self._ledger.books()
        return books.queued, books.running

    def _set(self, now: int) -> None:
        self._redis.set(f"{self._prefix}clock", now)


class Model:
    """Weights are one, as `Terms` and `service.tenants` leave them unasked."""

    def __init__(self, backoff_ms: int) -> None:
        self._backoff_ms = backoff_ms
        self._count = 0
        self._seq: dict[str, int] = {}
        self._cost: dict[str, float] = {}
        self._spent: dict[str, int] = defaultdict(int)
        self._since: dict[str, int] = {}
        self._strikes: dict[str, int] = defaultdict(int)
        self._paid: set[str] = set()
        self._wait: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._later: list[tuple[int, str]] = []
        self._turns: dict[str, float] = {}
        self._passes: dict[str, float] = defaultdict(float)
        self._vtime = 0.0
        self._waiting = 0

    def submit(self, now: int, ref: str, cost: float) -> None:
        """See Queue."""
        self._count += 1
        self._seq[ref] = self._count
        self._cost[ref] = max(cost, 1e-3)
        self._waiting += 1
        self._admit(ref)

    def claim(self, now: int) -> str | None:
        """See Queue."""
        self._wake(now)
        if not self._turns:
            return None
        virtual, who = min((virtual, who) for who, virtual in self._turns.items())
        _, ref = heapq.heappop(self._wait[who])
        self._strikes[ref] += 1
        if ref not in self._paid:
            self._paid.add(ref)
            self._vtime = virtual
            self._pay(who, virtual + self._cost[ref])
        if not self._wait[who]:
            del self._turns[who]
        self._waiting -= 1
        self._since[ref] = now
        return ref

    def commit(self, now: int, ref: str) -> None:
        """See Queue."""
        self._put_down(now, ref)
        who = tenant_of(ref)
        spent = self._spent.pop(ref) / 1000
        self._pay(who, self._passes[who] + (spent - self._cost.pop(ref)))
        if self._turns:
            self._vtime = min(self._turns.values())
        del self._seq[ref], self._strikes[ref]
        self._paid.discard(ref)

    def hand_back(self, now: int, ref: str) -> None:
        """See Queue."""
        self._put_down(now, ref)
        self._strikes[ref] -= 1
        self._waiting += 1
        self._admit(ref)

    def expire(self, now: int, ref: str) -> int:
        """See Queue."""
        self._wake(now - 1)
        self._put_down(now, ref)
        wait = int(min(self._backoff_ms * 2 ** max(self._strikes[ref] - 1, 0), 300_000))
        heapq.heappush(self._later, (now + wait, ref))
        self._waiting += 1
        self._wake(now)
        return now + wait

    def sizes(self) -> tuple[int, int]:
        """See Queue."""
        return self._waiting, len(self._since)

    def _put_down(self, now: int, ref: str) -> None:
        self._spent[ref] += now - self._since.pop(ref)

    def _wake(self, now: int) -> None:
        while self._later and self._later[0][0] <= now:
            self._admit(heapq.heappop(self._later)[1])

    def _admit(self, ref: str) -> None:
        who = tenant_of(ref)
        heapq.heappush(self._wait[who], (self._seq[ref], ref))
        if who not in self._turns:
            self._turns[who] = max(self._vtime, self._passes[who])

    def _pay(self, who: str, virtual: float) -> None:
        self._passes[who] = virtual
        if who in self._turns:
            self._turns[who] = virtual
