"""Rolling restarts under a constant load: `python -m bench.rolling --json`; the last line is JSON.

While customers submit short jobs and some that last longer than the grace, one worker or gateway
after the other gets SIGTERM, ten seconds to end, then SIGKILL, and is started again; the next one
follows when it serves. There are two workers more than customers, so that a job handed back never
waits for a free one. Two gateways stand behind the client, which tries a cut connection at the
other; what a gateway has begun it finishes.

    restarts   how many, of them `killed` because the grace did not suffice
    failed     jobs that did not end well; `lost`, `torn` … as in `bench.verdict`
    refused    answers of 5xx that a client saw
    handed     jobs that a leaving worker put back, and seconds until their next start
    ended_s    from SIGTERM to the process's end

`--small` is 3 restarts.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx

from bench.chaos import records_of, scrape, settled
from bench.client import Crowd, History, Order, read_history
from bench.stage import GRACE_S, Stage, quantiles, stage
from bench.verdict import Event, Record, clean, judge

LONG_S, LONG_STEPS = 15.0, 30  # more than the grace
SETTLE_S = 120.0


def orders(seed: int, every: int) -> list[Order]:
    """More than anybody will want; one of `every` is a long one."""
    rng = random.Random(seed)
    return [
        Order(
            number,
            seed=rng.randrange(10**6),
            steps=LONG_STEPS if number % every == 0 else rng.randint(4, 10),
            step_ms=int(1000 * LONG_S / LONG_STEPS) if number % every == 0 else 50,
            key=f"rolling-{seed}-{number}",
        )
        for number in range(10_000)
    ]


def run(
    restarts: int, seed: int, every: int, workers: int, threads: int, lease_s: float
) -> dict[str, Any]:
    """The whole experiment."""
    began = time.monotonic()
    with stage(gateways=2, workers=workers, lease_s=lease_s, redis_timeout_s=5.0) as place:
        history = History(place.folder / "history.jsonl")
        place.start_all()
        crowd = Crowd(place.urls, history, threads)
        crowd.begin(orders(seed, every))
        ended = [restart(next_one(n, place), place, history) for n in range(restarts)]
        crowd.finish()
        place.wait(lambda: not crowd.busy)
        place.wait(lambda: settled(place), SETTLE_S)
        scrape(place, history)
        history.close()
        seen, records = read_history(place.folder / "history.jsonl"), records_of(place)
    found = judge(seen, records, faults=0)
    found |= told(seen, records)
    found["restarts"] = restarts
    found["killed"] = sum(seconds >= GRACE_S for seconds in ended)
    found["ended_s"] = quantiles(ended)
    found["seconds"] = round(time.monotonic() - began, 1)
    return {**found, "clean": _clean(found)}


def next_one(number: int, place: Stage) -> str:
    """Two workers, then a gateway. Rather workers with a job in hand: others have no trouble."""
    if number % 3 == 2:
        return list(place.ports)[number // 3 % len(place.ports)]
    busy = sorted(place.wait(place.holders))
    return busy[number % len(busy)]


def restart(name: str, place: Stage, history: History) -> float:
    """As an orchestrator does it; returns the seconds until the process had ended."""
    history.note("restart", name=name)
    before = place.engine(name) if name in place.workers else None
    began = time.monotonic()
    place.term(name)
    place.wait(lambda: place.ended(name) or time.monotonic() - began > GRACE_S)
    took = time.monotonic() - began
    place.kill(name)
    place.start(name)
    place.wait(lambda: _serves(name, before, place))
    scrape(place, history)
    return took


def _serves(name: str, before: int | None, place: Stage) -> bool:
    """Whether the new one does."""
    if name in place.ports:
        try:
            return httpx.get(f"{place.url(name)}/healthz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False
    engine = place.engine(name)
    present = place.redis.smembers(f"{place.settings.key_prefix}:workers")
    return engine not in {None, before} and any(str(id).endswith(f":{engine}") for id in present)


def told(seen: Sequence[Event], records: dict[str, Record]) -> dict[str, Any]:
    """What restarts cost: answers of 5xx, and the time from each hand-back to the next start."""
    waits = [
        (then - at) / 1000
        for record in records.values()
        for (kind, at), (after, then) in zip(record.events, record.events[1:], strict=False)
        if (kind, after) == ("requeued", "started")
    ]
    refused = [event for event in seen if event["what"] == "refused"]
    return {
        "refused": len(refused),
        "codes": dict(Counter(event["code"] for event in refused)),
        "cut": sum(event["what"] == "cut" for event in seen),
        "handed": quantiles(waits),
    }


def _clean(found: dict[str, Any]) -> bool:
    starts = found["executions"] - found["jobs"] - found["unheard"]
    handed = found["handed"]
    in_time = found["killed"] == 0 and handed.get("p99", 0.0) <= 3.0
    all_handed = starts == handed["count"]
    # Here more starts than jobs are no fault: each is a job handed back.
    return clean(found | {"excess": 0}) and in_time and all_handed and found["refused"] == 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.rolling", description=__doc__)
    parser.add_argument("--restarts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    if given.small:
        found = run(3, given.seed, every=1, workers=4, threads=2, lease_s=15.0)
    else:
        found = run(given.restarts, given.seed, every=3, workers=5, threads=3, lease_s=15.0)
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
