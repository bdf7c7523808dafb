"""Publishing under load: `python -m bench.hot_swap --json`; the last line is JSON.

The real service as processes: a gateway, two workers with the real engine on small random weights,
a reaper, an S3 server whose answers sometimes storm. Customers ask for videos all the time, while
one model after the other is published, signed and led to; every tenth time something is wrong
(`bench.hot_swap_faults`), and now and then the last model is taken back.

    wrong_weights    finished videos whose frames are not those that an engine makes which has
                     loaded nothing but the model that the answer names, or that name a model which
                     was never published whole
    failed_jobs      jobs that did not end well, or needed another start
    lost_publishes   moves of the channel that were said to be made and are not in its history
    rollback_s       the longest from a rollback until all workers serve the model before; every
                     other time the store gives them meanwhile another model, a few bytes at a time
    pause_steps, rss_ratio   see `bench.hot_swap_cost`

`--small` is every fault once. The exit status is 1 unless all bars hold.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import httpx

from bench import hot_swap_cost, tiny
from bench.flaky_s3 import Weather, sky
from bench.hot_swap_faults import KINDS, PLANTED, Ground, key_pair, swap_later
from bench.stage import Stage, quantiles, stage
from engine import golden
from engine.channels import STABLE
from engine.errors import RegistryError
from engine.pipeline import Engine
from engine.registry import Registry
from engine.spec import Spec
from engine.stores import open_store
from service.fleet import Fleet
from service.roster import Roster, WorkerState

PROMPT, SEEDS = "a red ball", (1, 2)
STEPS, FRAMES, SIDE = 4, 5, 32
LIMIT_S = 240.0
RACERS = 8
STORM_S = 6.0
BARS = {
    "wrong_weights": 0, "failed_jobs": 0, "lost_publishes": 0, "rollback_s": 5.0,
    "pause_steps": 1.0, "rss_ratio": 1.1,
}  # fmt: skip

Frames = dict[tuple[str, int], str]  # sha256 of the frames, by the model's digest and the seed


class Crowd:
    """Customers, who ask for the next video as soon as they have theirs."""

    def __init__(self, url: str, customers: int) -> None:
        self.videos: list[dict[str, Any]] = []
        self._url, self._enough = url, threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(customers)]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Nobody asks any more; returns when all have theirs."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        asked = {
            "prompt": PROMPT, "size": f"{SIDE}x{SIDE}", "num_frames": FRAMES, "steps": STEPS,
            "guidance": {"identity_scale": 0},  # the variants bring no readers
        }  # fmt: skip
        with httpx.Client(base_url=self._url, timeout=120) as web:
            turn = number
            while not self._enough.is_set():
                turn += 1
                answer = web.post("/v1/videos", json=asked | {"seed": SEEDS[turn % len(SEEDS)]})
                video = answer.raise_for_status().json()
                while video["status"] not in {"completed", "failed"}:
                    time.sleep(0.1)
                    video = web.get(f"/v1/videos/{video['id']}").raise_for_status().json()
                self.videos.append(video)


class Publisher:
    """Leads the service from model to model, and knows what each of them makes."""

    def __init__(self, place: Stage, ground: Ground, weather: Weather, seed: int = 0) -> None:
        self.expected: Frames = {}
        self.moved: list[str] = []  # digests
        self.faults: Counter[str] = Counter()
        self.follow_s: list[float] = []
        self.rollback_s: list[float] = []
        self._place, self._ground, self._weather = place, ground, weather
        self._channels = ground.registry.channels
        self._fleet = Fleet(place.redis, place.settings)
        self._roster = Roster(place.redis, place.settings)
        self._rng = random.Random(seed)
        self._slowly = False

    def publish(self) -> str:
        """A model as it should be, with its golden picture; its digest."""
        folder = self._ground.variant()
        engine = Engine.load(folder)
        evaluation = {golden.KEY: golden.picture(engine)}
        digest = patiently(self._ground.registry.push, folder, self._ground.private, evaluation)
        for seed in SEEDS:
            spec = Spec.of(
                engine.preset, PROMPT, width=SIDE, height=SIDE, num_frames=FRAMES, steps=STEPS,
                seed=seed,
            )  # fmt: skip
            self.expected[digest, seed] = engine.generate(spec, ()).sha256()
        return digest

    def lead_to(self, digest: str) -> None:
        """Move the channel."""
        patiently(self._channels.move, STABLE, digest)
        self.moved.append(digest)

    def turn(self, what: str) -> None:
        """One of `turns`."""
        if what == "good":
            self.good()
        elif what == "back":
            self.taken_back()
        else:
            self.wrong(what)

    def good(self) -> None:
        """One model, served by all."""
        digest = self.publish()
        self.lead_to(digest)
        self.follow_s.append(self._followed(digest))

    def taken_back(self) -> None:
        """The last one, by all; every other time while they fetch the next one, and are at it."""
        before = self._channels.read(STABLE).before()
        if self._slowly:
            self._weather.slow = digest = self.publish()
            self.lead_to(digest)
            self._place.wait(lambda: self._fetched_by(digest) == len(self._workers()), LIMIT_S)
        began = time.monotonic()
        if self._slowly:
            self._channels.move(STABLE, before, "rollback by two")
        else:
            self._channels.roll_back(STABLE)
        self._followed(before)
        self.rollback_s.append(time.monotonic() - began)
        given_up, self._weather.slow = self._weather.slow, ""
        if self._slowly:
            self._place.wait(lambda: not self._fetched_by(given_up), LIMIT_S)
            if (self._ground.cache / given_up).exists():
                raise AssertionError("what no channel leads to was fetched all the same")
        self._slowly = not self._slowly

    def _fetched_by(self, digest: str) -> int:
        """How many workers are at it."""
        return len(list(self._ground.cache.glob(f".{digest}.draft-*")))

    def wrong(self, kind: str) -> None:
        """One fault, until it is over and the model before serves, or a better one."""
        self.faults[kind] += 1
        if kind in PLANTED:
            self._planted(kind)
        elif kind == "swapped":
            self._swapped()
        elif kind == "race":
            self._race()
        else:
            self._storm()

    def _planted(self, kind: str) -> None:
        before, digest = self._channels.read(STABLE).digest, PLANTED[kind](self._ground)
        self.lead_to(digest)
        self._place.wait(lambda: self._refused(kind, digest), LIMIT_S)
        if {worker.digest for worker in self._workers()} != {before}:
            raise AssertionError(f"{kind}: workers have left the model before")
        self._channels.roll_back(STABLE)

    def _refused(self, kind: str, digest: str) -> bool:
        if kind == "unsigned":  # no fault of the model's: a worker may have the wrong key
            return all("not signed" in worker.message for worker in self._workers())
        return digest in self._fleet.quarantined()

    def _swapped(self) -> None:
        before, digest = self._channels.read(STABLE).digest, self.publish()
        swap_later(self._ground, digest, self._rng.uniform(0, 0.3), self._rng.random() < 0.5)
        self.lead_to(digest)
        # Found out, or taken over from the files that were verified: the frames will tell.
        self._place.wait(lambda: self._serves(digest) or self._out(digest), LIMIT_S)
        self._ground.close()
        self._channels.roll_back(STABLE)
        self._followed(before)

    def _race(self) -> None:
        digests = [self.publish() for _ in range(RACERS)]
        threads = [threading.Thread(target=self.lead_to, args=(digest,)) for digest in digests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._followed(self._channels.read(STABLE).digest)

    def _storm(self) -> None:
        self._weather.storm = True
        calm = threading.Timer(STORM_S, lambda: setattr(self._weather, "storm", False))
        calm.start()
        self.good()
        calm.join()

    def _workers(self) -> list[WorkerState]:
        return self._roster.present()

    def _serves(self, digest: str) -> bool:
        return {worker.digest for worker in self._workers()} == {digest}

    def _out(self, digest: str) -> bool:
        return digest in self._fleet.quarantined()

    def _followed(self, digest: str) -> float:
        began = time.monotonic()
        self._place.wait(lambda: self._serves(digest), LIMIT_S)
        return time.monotonic() - began

    def lost(self) -> int:
        """Moves that were said to have been made and are not in the channel's history."""
        there = Counter(line.digest for line in self._channels.read(STABLE).lines)
        return sum((Counter(self.moved) - there).values())


def patiently(act: Any, *given: Any) -> Any:
    """As an operator tries again while the store storms."""
    over = time.monotonic() + LIMIT_S
    while True:
        try:
            return act(*given)
        except RegistryError:
            if time.monotonic() > over:
                raise
            time.sleep(0.5)


SMALL = ("good", "back", "good", "back", *KINDS)


def turns(publishes: int, every: int = 10) -> list[str]:
    """What is done, in order: "good", "back", or a fault's kind; a race publishes eight."""
    found: list[str] = []
    done = faults = 0
    while done < publishes or faults % len(KINDS):
        found += ["good"] * (every // 2) + ["back"] + ["good"] * (every - 1 - every // 2)
        kind = KINDS[faults % len(KINDS)]
        found.append(kind)
        done, faults = done + every - 1 + (RACERS if kind == "race" else 1), faults + 1
    return found


def wrong_weights(videos: Sequence[Mapping[str, Any]], expected: Frames) -> list[str]:
    """Ids of finished videos that are not what the model that they name makes."""
    return [
        video["id"]
        for video in videos
        if video["status"] == "completed"
        and expected.get((video["model_digest"], video["seed"])) != video["frames_sha256"]
    ]


def told(videos: Sequence[Mapping[str, Any]], publisher: Publisher) -> dict[str, Any]:
    """The counts."""
    frames = set(publisher.expected.values())
    return {
        "publishes": len(publisher.moved),
        "faults": dict(publisher.faults),
        "jobs": len(videos),
        "models_seen": len({video["model_digest"] for video in videos}),
        "told_apart": len(frames) == len(publisher.expected),
        "wrong_weights": len(wrong_weights(videos, publisher.expected)),
        "failed_jobs": sum(v["status"] != "completed" or v["attempts"] != 1 for v in videos),
        "lost_publishes": publisher.lost(),
        "rollback_s": round(max(publisher.rollback_s, default=0.0), 2),
        "rollbacks_s": quantiles(publisher.rollback_s),
        "followed_s": quantiles(publisher.follow_s),
    }


def exchanges(place: Stage) -> dict[str, Any]:
    """What workers wrote of their exchanges, seconds."""
    text = "".join(place.log(name) for name in place.workers)
    return {
        f"{name}_s": quantiles([float(one) for one in re.findall(rf"{words} in ([0-9.]+) s", text)])
        for name, words in (("exchanged", "exchanged"), ("tried_out", "tried out"))
    }


@contextmanager
def staged(workers: int) -> Iterator[tuple[Stage, Publisher]]:
    """A service that serves a first model, and who publishes the others."""
    with sky() as (weather, env), TemporaryDirectory(prefix="troupe-swap-") as place_of_models:
        folder = Path(place_of_models)
        private, public = key_pair(folder)
        boto3.Session().client("s3").create_bucket(Bucket="models")
        address = f"s3://models/all?key={public}#{STABLE}"
        base = tiny.base(folder / "base")
        with stage(1, workers, env, worker="workers.app", model_dir=address, lease_s=15) as place:
            registry = Registry(open_store("s3://models/all"), public)
            ground = Ground(registry, base, folder, private, place.settings.model_cache)
            publisher = Publisher(place, ground, weather)
            publisher.lead_to(publisher.publish())
            place.start_all()
            yield place, publisher


def run(what: Sequence[str], workers: int, customers: int) -> dict[str, Any]:
    """The whole experiment, but for what one engine is measured for. what: of `turns`."""
    began = time.monotonic()
    with staged(workers) as (place, publisher):
        crowd = Crowd(place.urls[0], customers)
        try:
            for turn in what:
                publisher.turn(turn)
        finally:
            crowd.finish()
        found = told(crowd.videos, publisher) | exchanges(place)
        found["restarts"] = place.restarts
    return found | {"seconds": round(time.monotonic() - began, 1)}


def over(found: Mapping[str, Any]) -> list[str]:
    """The bars that do not hold."""
    return [name for name, bar in BARS.items() if not found[name] <= bar]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m bench.hot_swap", description=__doc__)
    parser.add_argument("--publishes", type=int, default=200)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--json", action="store_true", help="only the JSON line")
    given = parser.parse_args(arguments)
    if given.small:
        found = run(SMALL, workers=1, customers=2)
        cost = hot_swap_cost.pause(hot_swap_cost.SHIPPED, times=2, steps=2)
        cost |= hot_swap_cost.ready(hot_swap_cost.SHIPPED, times=6)
        memory = hot_swap_cost.rss(dim=256, layers=4)
    else:
        found = run(turns(given.publishes), workers=2, customers=3)
        cost = hot_swap_cost.pause(hot_swap_cost.SHIPPED, times=20, steps=4)
        cost |= hot_swap_cost.ready(hot_swap_cost.SHIPPED, times=60)
        memory = hot_swap_cost.rss(dim=1024, layers=12)
    found |= cost | memory
    found["over"] = over(found)
    print(json.dumps(found))
    return 1 if found["over"] or not found["told_apart"] else 0


if __name__ == "__main__":
    sys.exit(main())
