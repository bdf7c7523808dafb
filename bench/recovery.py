"""How soon a job goes on after its worker's death: `python -m bench.recovery --json`.

Slow jobs, each of whose workers is killed once at a random step: in turns the whole process tree
and only the process that computes. The last line is JSON:

    claim_s      seconds from the kill to the next start: count, p50, p99, max; with a lease of 15 s
                 the bar is p99 <= 20, so lease + 5
    again        steps that were made a second time, per kill
    unsaved      kills after which the job went on before the step that was saved by then: none, so
                 no more is made again than lies between two saves (`workers.pace`)
    resumed      starts that went on in the middle
    unequal      videos that do not show what an undisturbed run shows (`bench.scripted.end`)
    failed       jobs that did not end well
    late         jobs that had ended when their kill came: asked for once more, in no other figure

`--small` is 6 kills and a lease of 3 s.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.client import Order
from bench.scripted import seen
from bench.stage import Stage, quantiles, stage

STEPS = 20
STEP_MS = 400


@dataclass
class Case:
    """One job: killed at its step `at`, as a whole tree or not."""

    order: Order
    at: int
    whole: bool
    ref: str = ""
    killed: float = 0.0
    step: int = 0
    saved: int = 0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)


def cases(kills: int, seed: int) -> list[Case]:
    """What happens to each job."""
    rng = random.Random(seed)
    return [
        Case(
            Order(number, seed=rng.randrange(10**6), steps=STEPS, step_ms=STEP_MS),
            at=rng.randint(1, STEPS - 4),
            whole=number % 2 == 0,
        )
        for number in range(kills)
    ]


def run(kills: int, seed: int, at_once: int, lease_s: float) -> dict[str, Any]:
    """The whole experiment; a few more workers than jobs, so that nobody waits for a free one."""
    began = time.monotonic()
    with stage(gateways=1, workers=at_once + 3, lease_s=lease_s) as place:
        place.start_all()
        waiting, hand, done = cases(kills, seed)[::-1], list[Case](), list[Case]()
        late = 0
        while waiting or hand:
            while waiting and len(hand) < at_once:
                hand.append(submitted(waiting.pop(), place))
            place.tend()
            _kill(hand, place)
            ended = [case for case in hand if _ended(case, place)]
            hand = [case for case in hand if case not in ended]
            missed = [case for case in ended if _undisturbed(case)]
            done += [case for case in ended if case not in missed]
            late += len(missed)
            if late > kills:
                raise RuntimeError(f"{late} jobs ended before their kill: this machine is too busy")
            waiting += [Case(case.order, case.at, case.whole) for case in missed]
            time.sleep(0.02)
        found = _told(done, place) | {"late": late}
    found["bar_s"] = lease_s + 5
    return {**found, "seconds": round(time.monotonic() - began, 1), "clean": _clean(found)}


def submitted(case: Case, place: Stage) -> Case:
    """Over HTTP, as a client does."""
    answer = httpx.post(f"{place.urls[0]}/v1/videos", timeout=60, **case.order.body)
    case.ref = f"local/{answer.raise_for_status().json()['id']}"
    return case


def _kill(hand: Sequence[Case], place: Stage) -> None:
    """Those that are at their step."""
    if all(case.killed for case in hand):
        return
    holders = {ref: name for name, ref in place.holders().items()}
    for case in hand:
        name = holders.get(case.ref)
        if case.killed or name is None:
            continue
        step, saved = place.fields(case.ref, "step", "saved_step")
        if step < case.at:
            continue
        case.step, case.saved, case.killed = step, saved, time.time()
        if case.whole:
            place.kill(name)
        else:
            place.kill_engine(name)


def _ended(case: Case, place: Stage) -> bool:
    events = place.events(case.ref)
    if not events or events[-1][1]["kind"] not in {"completed", "failed"}:
        return False
    case.events = [(one["kind"], json.loads(one["data"])) for _, one in events]
    return True


def _undisturbed(case: Case) -> bool:
    """Whether it ended well before anybody killed it."""
    return len(starts(case)) == 1 and case.events[-1][0] == "completed"


def _told(done: Sequence[Case], place: Stage) -> dict[str, Any]:
    killed = [case for case in done if len(starts(case)) > 1]
    steps = [steps_of(case) for case in killed]
    again = [before - after for before, after in steps]
    unsaved = [case.saved - max(after, 1) for case, (_, after) in zip(killed, steps, strict=True)]
    return {
        "jobs": len(done),
        "kills": len(killed),
        "claim_s": quantiles([starts(case)[1] - case.killed for case in killed]),
        "again": quantiles([float(count) for count in again]),
        "unsaved": sum(count > 0 for count in unsaved),
        "resumed": sum(after > 0 for _, after in steps),
        "executions": sum(len(starts(case)) for case in done),
        "unequal": sum(not _right(case, place) for case in done),
        "failed": sum(case.events[-1][0] != "completed" for case in done),
    }


def starts(case: Case) -> list[float]:
    """When it was started, seconds by Redis's clock."""
    return [data["at_ms"] / 1000 for kind, data in case.events if kind == "started"]


def steps_of(case: Case) -> tuple[int, int]:
    """The last step that the first start told of, and the one from which the second went on.

    One that begins anew tells of step 1 first, because 0 is no news to the ledger.
    """
    kinds = [kind for kind, _ in case.events]
    second = kinds.index("requeued")
    before = [data["step"] for kind, data in case.events[:second] if kind == "progress"]
    after = [
        data["step"] for kind, data in case.events[second:]
        if kind == "progress" and data["stage"] == "denoise"
    ]  # fmt: skip
    return int(max(before)), int(after[0] if after[0] > 1 else 0)


def _right(case: Case, place: Stage) -> bool:
    video = case.ref.partition("/")[2]
    url = f"{place.urls[0]}/v1/videos/{video}/content?variant=thumbnail"
    answer = httpx.get(url, timeout=60)
    return answer.status_code == 200 and seen(answer.content) == case.order.end


def _clean(found: dict[str, Any]) -> bool:
    in_time = found["claim_s"].get("p99", 0.0) <= found["bar_s"]
    return bool(in_time and not found["unsaved"] and not found["unequal"] and not found["failed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    if given.small:
        found = run(6, given.seed, at_once=3, lease_s=3.0)
    else:
        found = run(given.kills, given.seed, given.at_once, lease_s=15.0)
    print(json.dumps(found))
    return 0 if found["clean"] else 1


if __name__ == "__main__":
    sys.exit(main())
