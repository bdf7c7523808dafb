"""Kill everything: `python -m bench.chaos --jobs 3000 --seed 0 --json`; the last line is JSON.

The real service as processes, with a scripted engine: two gateways, four workers, a reaper, a
Valkey for the ledger (every write synced) and another for the broker. While clients submit, poll
and download, faults strike, in an order that the seed decides:

    worker   SIGKILL to a worker with all its processes         100
    engine   SIGKILL to the process that computes                50
    client   CLIENT KILL of a connection to a Valkey             50
    ledger   SIGKILL to the ledger's Valkey within a POST, back   5
             on its file
    broker   SIGKILL to the broker's Valkey, back empty           2
    gateway  SIGKILL to a gateway within a POST                  20

`--small` is 60 jobs and a handful of each, as in `make test`. What is counted: `bench.verdict`;
`executions` may be at most jobs + faults. `recovery_s` is from the kill of a process that had a job
in hand to the job's next start. The exit status is 1 unless all that must be nought is.
"""

import argparse
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httpx
import redis

from bench.client import Crowd, Customer, History, Order, Web, read_history
from bench.stage import Stage, quantiles, stage
from bench.verdict import Record, clean, judge, record_of
from service import blobs as store
from service.blobs import open_blobs
from service.errors import LedgerDown
from service.refs import id_of

SCRAPE_S = 0.5
SETTLE_S = 120.0
REREAD = 10  # one of so many


@dataclass(frozen=True)
class Dose:
    """How many faults of each kind."""

    worker: int = 100
    engine: int = 50
    client: int = 50
    ledger: int = 5
    broker: int = 2
    gateway: int = 20


FULL, SMALL = Dose(), Dose(worker=3, engine=3, client=6, ledger=1, broker=1, gateway=2)


@dataclass(frozen=True)
class Fault:
    """What strikes once so many jobs have ended; `pick` in [0, 1) chooses the victim."""

    kind: str
    after: int
    pick: float


def orders(jobs: int, seed: int) -> list[Order]:
    """What the clients want."""
    rng = random.Random(seed)
    return [
        Order(
            number=number,
            seed=rng.randrange(10**6),
            steps=rng.randint(2, 6),
            step_ms=rng.choice((2, 5, 10, 40)),
            picture=rng.random() < 0.15,
            key=f"chaos-{seed}-{number}" if rng.random() < 0.5 else "",
            cancel_s=rng.uniform(0, 0.5) if rng.random() < 0.03 else None,
        )
        for number in range(jobs)
    ]


def faults(dose: Dose, jobs: int, seed: int) -> list[Fault]:
    """All of a dose, over the first three quarters of the jobs: later nobody submits any more."""
    rng = random.Random(seed + 1)
    kinds = [kind for kind, count in asdict(dose).items() for _ in range(count)]
    rng.shuffle(kinds)
    return [
        Fault(kind, round(0.75 * jobs * number / len(kinds)), rng.random())
        for number, kind in enumerate(kinds)
    ]


class Injector:
    """Strikes. Each kind's method returns whether there was somebody to strike."""

    def __init__(self, place: Stage, crowd: Crowd, history: History) -> None:
        self._stage = place
        self._crowd = crowd
        self._history = history
        self.hit: list[tuple[str, float]] = []  # jobs whose process was killed, and when

    def strike(self, fault: Fault) -> bool:
        """Try it now."""
        done: bool = getattr(self, f"_{fault.kind}")(fault.pick)
        if done:
            self._history.note("fault", kind=fault.kind)
        return done

    def _victim(self, pick: float) -> str | None:
        """Mostly one with a job in hand: between two jobs there is less to break."""
        holders = self._stage.holders()
        found = sorted(holders) if pick < 0.8 else self._stage.workers
        name = found[int(pick * 1000) % len(found)] if found else None
        if name in holders:
            self.hit.append((holders[name], time.time()))
        return name

    def _worker(self, pick: float) -> bool:
        name = self._victim(pick)
        if name is not None:
            self._stage.kill(name)
        return name is not None

    def _engine(self, pick: float) -> bool:
        name = self._victim(pick)
        return name is not None and self._stage.kill_engine(name)

    def _client(self, pick: float) -> bool:
        """A connection of the ledger's, or for a third of the picks of the broker's."""
        name = "broker" if pick * 3 % 1 < 1 / 3 else "ledger"
        with redis.Redis(unix_socket_path=str(self._stage.socket(name))) as client:
            own = client.client_id()
            found = [one["id"] for one in client.client_list() if int(one["id"]) != own]
            if not found:
                return False
            return bool(client.client_kill_filter(_id=found[int(pick * len(found))]))

    def _ledger(self, pick: float) -> bool:
        """While somebody submits: the answer to that may get lost."""
        if not any(self._crowd.posting.values()):
            return False
        time.sleep(0.02 * pick)
        self._stage.kill("ledger")
        return True

    def _broker(self, pick: float) -> bool:
        self._stage.wipe("broker")
        return True

    def _gateway(self, pick: float) -> bool:
        """One that is reading or answering a POST."""
        names = [n for n in self._stage.ports if self._crowd.posting[self._stage.url(n)] > 0]
        if not names:
            return False
        time.sleep(0.02 * pick)
        self._stage.kill(names[int(pick * 1000) % len(names)])
        return True


def run(
    jobs: int, seed: int, dose: Dose, workers: int, threads: int, **given: Any
) -> dict[str, Any]:
    """The whole experiment; returns the counts."""
    began = time.monotonic()
    with stage(gateways=2, workers=workers, **given) as place:
        path = place.folder / "history.jsonl"
        history = History(path)
        place.start_all()
        crowd = Crowd(place.urls, history, threads)
        injector = Injector(place, crowd, history)
        crowd.begin(orders(jobs, seed))
        struck = _rage(place, crowd, injector, history, faults(dose, jobs, seed))
        rage_s = time.monotonic() - began
        place.wait(lambda: settled(place), SETTLE_S)
        scrape(place, history)
        records = records_of(place)
        _read_again(place, history, records)
        history.close()
        found = judge(read_history(path), records, sum(struck.values()))
        found["struck"] = dict(struck)
        found["restarts"] = place.restarts
        found["rage_s"] = round(rage_s, 1)
        found["recovery_s"] = quantiles(_recovery(injector.hit, records))
    return {**found, "seconds": round(time.monotonic() - began, 1), "clean": clean(found)}


def _rage(
    place: Stage, crowd: Crowd, injector: Injector, history: History, plan: Sequence[Fault]
) -> Counter[str]:
    """Until the clients are done."""
    waiting, struck, scraped = list(plan), Counter[str](), 0.0
    while crowd.busy:
        place.tend()
        due = [fault for fault in waiting[:8] if fault.after <= history.ended]
        for fault in due:
            if _strike(injector, fault):
                waiting.remove(fault)
                struck[fault.kind] += 1
                break
        if time.monotonic() - scraped > SCRAPE_S:
            scraped = time.monotonic()
            scrape(place, history)
        time.sleep(0.02)
    return struck


def _strike(injector: Injector, fault: Fault) -> bool:
    try:
        return injector.strike(fault)
    except redis.RedisError:  # an earlier one is still down
        return False


def scrape(place: Stage, history: History) -> None:
    """The books, of each gateway that has them."""
    for url in place.urls:
        try:
            books = httpx.get(f"{url}/readyz", timeout=5).json().get("books")
        except (httpx.TransportError, ValueError):
            continue
        if books is not None:
            history.note("scrape", **books)


def settled(place: Stage) -> bool:
    """Nothing waits and nothing runs, also of what no client heard of."""
    try:
        books = place.ledger.books()
    except LedgerDown:
        return False
    return books.queued == books.running == 0


def records_of(place: Stage) -> dict[str, Record]:
    """What the ledger has of all jobs, by the client's ids."""
    found = {}
    for ref in place.refs():
        job = place.ledger.read(ref)
        events = place.events(ref)
        error = job.text("error_code") or ""
        found[id_of(ref)] = record_of(job.state, job.request, job.result, error, events)
    return found


def _read_again(place: Stage, history: History, records: dict[str, Record]) -> None:
    """Every finished video when all is quiet: from the store, and some by another reader."""
    blobs = open_blobs(place.settings)
    web = Web(place.urls, history, Counter())
    reader = Customer(web, history)
    for number, (video, record) in enumerate(records.items()):
        if record.state != "completed":
            continue
        sha256 = hashlib.sha256(store.get(blobs, record.key)).hexdigest()
        history.note("late", id=video, status=200, etag=f'"{record.video}"', sha256=sha256)
        if number % REREAD == 0:
            reader.fetch(video, "late")
    web.close()


def _recovery(hit: Sequence[tuple[str, float]], records: dict[str, Record]) -> list[float]:
    """Seconds from each kill to the job's next start, where there was one."""
    found = []
    for ref, at in hit:
        starts = [
            ms / 1000 for kind, ms in records[id_of(ref)].events
            if kind == "started" and ms / 1000 > at
        ]  # fmt: skip
        found += [starts[0] - at] if starts else []
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--lease-s", type=float, default=5.0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    found = run(
        60 if given.small else given.jobs,
        given.seed,
        SMALL if given.small else FULL,
        workers=3 if given.small else given.workers,
        threads=12 if given.small else 24,
        lease_s=3.0 if given.small else given.lease_s,
        max_attempts=10,
        redis_timeout_s=2.0,
    )
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
