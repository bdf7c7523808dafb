"""Workers back from the dead, and clocks that are wrong: `python -m bench.zombies --json`.

A worker's computing process is stopped (SIGSTOP) at a random step, or, every other time, while it
encodes its finished video, so that nothing but the commit is left to do. Its lease runs out,
another worker ends the job, then it goes on (SIGCONT). The last line is JSON:

    stale_accepted  jobs whose result changed after that, or that were completed twice
    told            zombies that learned that the job is not theirs any more: all of them
    commits         stale commits that the ledger refused and counted
    wrong, failed   videos that do not show what they must; jobs that did not end well
    skew            the same service with libfaketime: a gateway and a worker ten minutes ahead,
                    others ten minutes behind, the reaper ahead; one worker is killed. `moved` are
                    jobs that lost a living worker, `astray` times that are not near Redis's.

`--small` is 8 stops. Without libfaketime (Debian: `libfaketime`), `skew` says that it is missing.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx

from bench.client import Order
from bench.scripted import seen
from bench.stage import Stage, stage

STEPS = 8
SKEW_S = 600
ENDS = {"completed", "failed"}
BUSY_LIMIT_S = 60.0
STALE = "commit_rejected|stale_token"  # as /metrics counts it
SLEEP = """import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


@dataclass
class Case:
    """One job, stopped at its step `at`, or while it is stored (`at` 0)."""

    order: Order
    at: int
    ref: str = ""
    worker: str = ""
    pid: int = 0
    before: str = ""  # the result when the zombie was let go on
    woken: bool = False
    zombie: bool = False  # it was stopped before its end: another one had to make it


def cases(seed: int) -> Iterator[Case]:
    """What happens to each job, for as many as are needed."""
    rng = random.Random(seed)
    for number in count():
        order = Order(number, seed=rng.randrange(10**6), steps=STEPS, step_ms=40, store_ms=300)
        yield Case(order, at=rng.randint(1, STEPS - 2) if number % 2 else 0)


def run(stops: int, seed: int, at_once: int, lease_s: float) -> dict[str, Any]:
    """Stop, wait, go on. Two workers for each job at once: one is stopped, one goes on."""
    with stage(gateways=1, workers=2 * at_once, lease_s=lease_s) as place:
        place.start_all()
        waiting, hand, done = cases(seed), list[Case](), list[Case]()
        while hand or _zombies(done) < stops:
            while len(hand) < min(at_once, stops - _zombies(done)):
                case = next(waiting)
                case.ref = submitted(case.order, place)
                hand.append(case)
            place.tend()
            _stop(hand, place)
            ended = [case for case in hand if _gone_through(case, place)]
            done += ended
            hand = [case for case in hand if case not in ended]
            time.sleep(0.01)
        return _told(done, place)


def _zombies(done: Sequence[Case]) -> int:
    return sum(case.zombie for case in done)


def submitted(order: Order, place: Stage, gateway: int = 0) -> str:
    """Over HTTP, as a client does; the job's ref."""
    answer = httpx.post(f"{place.urls[gateway]}/v1/videos", timeout=60, **order.body)
    return f"local/{answer.raise_for_status().json()['id']}"


def _stop(hand: Sequence[Case], place: Stage) -> None:
    holders = {ref: name for name, ref in place.holders().items()}
    for case in hand:
        name = holders.get(case.ref)
        if case.pid or name is None:
            continue
        stage_now, step = place.texts(case.ref, "stage", "step")
        at_hand = stage_now == "store" if case.at == 0 else int(step or 0) >= case.at
        pid = place.engine(name)
        if at_hand and pid is not None:
            os.kill(pid, signal.SIGSTOP)
            case.pid, case.worker = pid, name


def _gone_through(case: Case, place: Stage) -> bool:
    """Whether the zombie has been woken and has noticed; wakes it when another is through."""
    [state, result] = place.texts(case.ref, "state", "result")
    if not case.pid:
        return state in ENDS  # it was faster than we were
    if not case.woken:
        if state in ENDS:
            case.before, case.woken = result, True
            os.kill(case.pid, signal.SIGCONT)
        return False
    case.zombie = place.fields(case.ref, "attempts") > [1]
    return f"{case.ref} attempt 1: " in place.log(case.worker)


def _told(done: Sequence[Case], place: Stage) -> dict[str, Any]:
    stopped = [case for case in done if case.zombie]
    logs = {name: place.log(name) for name in place.workers}
    twice = 0
    for case in stopped:
        kinds = [one["kind"] for _, one in place.events(case.ref)]
        [result] = place.texts(case.ref, "result")
        twice += kinds.count("completed") > 1 or result != case.before
    return {
        "stops": len(stopped),
        "stale_accepted": twice,
        "told": sum(f"{c.ref} attempt 1: stale" in logs[c.worker] for c in stopped),
        "commits": int(place.redis.hget(f"{place.settings.key_prefix}:counts", STALE) or 0),
        "wrong": sum(not right(case.ref, case.order, place) for case in done),
        "failed": sum(place.texts(case.ref, "state") != ["completed"] for case in done),
        "balanced": place.ledger.books().balanced,
    }


def right(ref: str, order: Order, place: Stage) -> bool:
    """Whether the job's picture is the one that was ordered."""
    url = f"{place.urls[0]}/v1/videos/{ref.partition('/')[2]}/content?variant=thumbnail"
    answer = httpx.get(url, timeout=60)
    return answer.status_code == 200 and seen(answer.content) == order.end


def faketime() -> Path | None:
    """The library that Debian's package puts there."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def skewed(library: Path, seconds: int, folder: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is wrong by so much; all waiting is by the
    monotonic one, which stays right.

    libfaketime 0.9.10 then breaks `time.sleep` (its issue 426), which a module that Python imports
    first, in `folder`, puts on select.
    """
    (folder / "sitecustomize.py").write_text(SLEEP)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME": f"{seconds:+d}",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }


def run_skewed(jobs: int, seed: int, lease_s: float) -> dict[str, Any]:
    """A service whose processes disagree by twenty minutes."""
    library = faketime()
    if library is None:
        return {"skipped": "libfaketime is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        ahead, behind = (skewed(library, by, Path(folder)) for by in (SKEW_S, -SKEW_S))
        return _run_skewed(jobs, seed, lease_s, ahead, behind)


def _run_skewed(
    jobs: int, seed: int, lease_s: float, ahead: Mapping[str, str], behind: Mapping[str, str]
) -> dict[str, Any]:
    apart = {
        "gateway-1": ahead, "gateway-2": behind, "reaper": ahead,
        "worker-1": ahead, "worker-2": behind, "worker-3": behind,
    }  # fmt: skip
    with stage(gateways=2, workers=3, apart=apart, lease_s=lease_s) as place:
        place.start_all()
        rng = random.Random(seed)
        orders = [Order(n, rng.randrange(10**6), steps=STEPS, step_ms=60) for n in range(jobs)]
        refs = {submitted(order, place, order.number % 2): order for order in orders}
        victim, ref = place.wait(lambda: next(iter(place.holders().items()), None), BUSY_LIMIT_S)
        place.kill_engine(victim)
        place.wait(lambda: all(place.texts(ref, "state")[0] in ENDS for ref in refs))
        lost = {r for r in refs if any(e["kind"] == "requeued" for _, e in place.events(r))}
        return {
            "jobs": len(refs),
            "failed": sum(place.texts(ref, "state") != ["completed"] for ref in refs),
            "wrong": sum(not right(ref, order, place) for ref, order in refs.items()),
            "moved": len(lost - {ref}),
            "astray": sum(_astray(ref, place) for ref in refs),
            "balanced": place.ledger.books().balanced,
        }


def _astray(ref: str, place: Stage) -> bool:
    """Whether a time that a client is told is far from Redis's clock, which nobody bent."""
    now = time.time()
    video = ref.partition("/")[2]
    for url in place.urls:
        told = httpx.get(f"{url}/v1/videos/{video}", timeout=60).json()
        times = [told["created_at"], told["completed_at"] or now]
        if any(abs(at - now) > SKEW_S / 2 for at in times):
            return True
    return False


def clean(found: dict[str, Any]) -> bool:
    """Whether nothing came through that should not."""
    skew = found["skew"]
    nought = [found[name] for name in ("stale_accepted", "wrong", "failed")]
    nought += [skew.get(name, 0) for name in ("failed", "wrong", "moved", "astray")]
    heard = found["told"] == found["stops"] and found["commits"] > 0
    return not any(nought) and heard and found["balanced"] and skew.get("balanced", True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.zombies", description=__doc__)
    parser.add_argument("--stops", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    stops, at_once = (8, 2) if given.small else (given.stops, given.at_once)
    found = run(stops, given.seed, at_once, lease_s=2.0)
    found["skew"] = run_skewed(6 if given.small else 60, given.seed, lease_s=3.0)
    found["seconds"] = round(time.monotonic() - began, 1)
    found["clean"] = clean(found)
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
