"""What the ledger's Redis spends on a fleet: CPU of its one thread for each kind of call, over a
real, durable Valkey with so many jobs waiting; and the fleet for which that thread is the limit.

CPU time of Redis's main thread is what is counted (INFO, `used_cpu_*_main_thread`): parsing, the
script, and writing the log are in it, waiting for the disk is not. Calls come one by one over one
connection, so nothing is shared among them that a fleet would not share.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from service import scripts
from service.jobs import Claim, Terms
from service.ledger import Ledger, connect
from service.roster import Roster, WorkerState
from service.settings import Settings
from service.submission import submission
from troupe.stack import redis_argv

BUSY = 0.7  # of its time: beyond that, queues before it grow long
BATCH = 1000
REQUEST = {"spec": {"prompt": "x" * 200, "num_frames": 81, "fps": 16}, "references": ["y" * 64] * 3}


@dataclass(frozen=True)
class Habits:
    """What a fleet does. job_s: a job on a card; step_s: between two steps that are told; lease_s:
    as the setting, of which a third lies between heartbeats and announcements; reapers: as many,
    each of which looks at all workers lease_s / 15 apart; scrapes_s: between two readings of
    /metrics, in all."""

    job_s: float = 570.0
    step_s: float = 10.0
    lease_s: float = 15.0
    reapers: int = 2
    scrapes_s: float = 5.0


@contextmanager
def durable_redis() -> Iterator[Settings]:
    """A Valkey as the ledger asks for, and settings that lead to it."""
    folder = Path(tempfile.mkdtemp(prefix="tf"))
    argv = redis_argv(folder / "s", folder)
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    settings = Settings(redis_url=f"unix://{folder / 's'}", max_queued=0, redis_timeout_s=30)
    try:
        client = connect(settings)
        while server.poll() is None:
            try:
                client.ping()
                break
            except redis.RedisError:
                time.sleep(0.02)
        client.close()
        yield settings
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def fill(client: redis.Redis, settings: Settings, jobs: int) -> float:
    """Let so many jobs wait, of three tenants; bytes of memory for each."""
    sha = client.script_load(scripts.source("submit"))
    before = client.info("memory")["used_memory"]
    for start in range(0, jobs, BATCH):
        pipe = client.pipeline(transaction=False)
        for number in range(start, min(start + BATCH, jobs)):
            told = submission(f"t{number % 3}/fill-{number}", REQUEST, Terms(), 0, None)
            pipe.evalsha(sha, 1, f"{settings.key_prefix}:", *told)
        pipe.execute()
    return float(client.info("memory")["used_memory"] - before) / max(jobs, 1)


def spent_us(client: redis.Redis) -> float:
    """CPU of Redis's main thread so far."""
    told = client.info("cpu")
    return 1e6 * float(
        told["used_cpu_user_main_thread"] + told["used_cpu_sys_main_thread"]
    )


def calls(ledger: Ledger, roster: Roster, cards: int) -> dict[str, Callable[[int], Any]]:
    """One call of each kind; each is given a number of its own. Claims come before what needs
    them."""
    claims: list[Claim] = []

    def claim(number: int) -> None:
        found = ledger.claim(f"h{number}")
        assert found is not None
        claims.append(found)

    def beat(number: int) -> None:
        one = claims[number % len(claims)]
        # As a worker tells a step: how far it is, and that it got on.
        step = 1 + number // len(claims)
        assert ledger.beat(one, step, True, step=step, steps=50, stage="denoise") == "ok"

    def hold(number: int) -> None:
        assert ledger.beat(claims[number % len(claims)]) == "ok"

    def commit(number: int) -> None:
        assert ledger.commit(claims.pop(), {"timings": {"denoise_s": 1.0}}) == "ok"

    def announce(number: int) -> None:
        roster.announce(WorkerState(f"card-{number % cards}", "busy", digest="d" * 64))

    return {
        "submit": lambda number: ledger.submit(f"t{number % 3}/new-{number}", REQUEST),
        "claim": claim,
        "step": beat,
        "beat": hold,
        "commit": commit,
        "announce": announce,
    }


def measure(depth: int, each: int, rounds: int, cards: int) -> dict[str, Any]:
    """CPU of one call of each kind, us, as median, least and most of the rounds, with `depth` jobs
    waiting; and of one worker in a look at all."""
    with durable_redis() as settings:
        client = connect(settings)
        size = fill(client, settings, depth + each * rounds)
        ledger = Ledger(client, settings.model_copy(update={"lease_s": 3600.0}))
        roster = Roster(client, settings.model_copy(update={"lease_s": 3600.0}))
        told: dict[str, list[float]] = {}
        kinds = calls(ledger, roster, cards)
        for number in range(cards):
            kinds["announce"](number)
        for turn in range(rounds):
            for name, call in kinds.items():
                before = spent_us(client)
                for number in range(each):
                    call(turn * each + number)
                told.setdefault(name, []).append((spent_us(client) - before) / each)
            for name, look in (("look", roster.present), ("figures", ledger.figures)):
                before = spent_us(client)
                for _ in range(10):
                    look()
                told.setdefault(name, []).append((spent_us(client) - before) / 10 / cards)
        client.close()
    spread = {
        name: [round(f(found), 2) for f in (statistics.median, min, max)]
        for name, found in told.items()
    }
    return {"depth": depth, "bytes_per_job": round(size), "us": spread}


def busy(us: dict[str, list[float]], cards: int, habits: Habits = Habits()) -> dict[str, float]:
    """Share of its time that Redis's thread spends on a fleet of so many busy cards, by kind."""
    often = {
        "submit": cards / habits.job_s,
        "claim": cards / habits.job_s,
        "commit": cards / habits.job_s,
        "step": cards / habits.step_s,
        "beat": cards * 3 / habits.lease_s,
        "announce": cards * 3 / habits.lease_s,
        "look": cards * habits.reapers * 15 / habits.lease_s,
        "figures": cards / habits.scrapes_s,
    }
    return {name: rate * us[name][0] / 1e6 for name, rate in often.items()}


def limit(us: dict[str, list[float]], habits: Habits = Habits()) -> dict[str, Any]:
    """Cards for which Redis's thread is BUSY, what it spends that on, and calls a second then."""
    one = busy(us, 1, habits)
    cards = BUSY / sum(one.values())
    share = {name: round(part / sum(one.values()), 3) for name, part in one.items()}
    jobs = 3 / habits.job_s  # submit, claim, commit
    others = 1 / habits.step_s + 6 / habits.lease_s  # steps; heartbeats and announcements
    return {
        "cards": round(cards),
        "calls_per_s": round(cards * (jobs + others)),
        "jobs_per_s": round(cards / habits.job_s, 1),
        "share": share,
    }
