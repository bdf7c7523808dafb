"""A fleet's day for `bench.fleet`: who asks for what, which cards there are, and what it comes to.

Events follow one another by their time, in whole ms, so nothing waits for a clock. Three tenants:
`day` asks by the hours of a day, `even` as often at any hour, and `batch` hands in all that it has
at once. Cards are spot cards: each is lost after an exponential time, most of them with a notice,
upon which the worker hands its job back at the next step; the others die, and their jobs wait for
the lease to run out. A job goes on from the step that was saved last.
"""

import heapq
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.fleet_queue import Queue

TENANTS = ("batch", "day", "even")
HOUR_MS = 3_600_000
LENGTHS_S = ((120, 0.25), (480, 0.5), (1200, 0.25))  # of jobs on one card, and how many are so


@dataclass(frozen=True)
class World:
    """cards: most that there are. jobs: in all, half of them `batch`'s. hours: of asking.

    boot_s: until a new card serves. start_s: of each start, before its first step. save_s: between
    two saved steps. lost_an_hour: of the cards. notice: of those losses, with one. lease_s: as the
    setting. together: all ask at once, when `batch` does.
    """

    cards: int = 10_000
    jobs: int = 1_000_000
    hours: float = 24.0
    batch_at_h: float = 2.0
    boot_s: float = 300.0
    start_s: float = 8.0
    save_s: float = 30.0
    lost_an_hour: float = 0.05
    notice: float = 0.8
    lease_s: float = 15.0
    together: bool = False
    seed: int = 1


@dataclass(frozen=True)
class Job:
    """One that will be asked for; lasts_s on one card, cost as estimated."""

    at: int
    ref: str
    lasts_ms: int
    cost: float


def asked(world: World) -> Iterator[Job]:
    """All jobs, in order of time."""
    rng = random.Random(world.seed)
    share = {"batch": world.jobs // 2, "day": world.jobs // 4}
    share["even"] = world.jobs - sum(share.values())
    span = world.hours * HOUR_MS
    times: list[tuple[int, str]] = [(int(world.batch_at_h * HOUR_MS), "batch")] * share["batch"]
    times += [(int(rng.random() * span), "even") for _ in range(share["even"])]
    while len(times) < world.jobs:  # by rejection: nobody at midnight, twice the mean at noon
        moment = rng.random() * span
        if rng.random() < (1 - math.cos(2 * math.pi * moment / (24 * HOUR_MS))) / 2:
            times.append((int(moment), "day"))
    if world.together:
        times = [(int(world.batch_at_h * HOUR_MS), who) for _, who in times]
    lengths, weights = zip(*LENGTHS_S, strict=True)
    for number, (at, who) in enumerate(sorted(times)):
        [usual] = rng.choices(lengths, weights)
        yield Job(at, f"{who}/{number}", int(usual * 1000 * rng.uniform(0.8, 1.25)), float(usual))


# Cards wanted, of jobs that wait, jobs in hand, cards there are, and the time.
Rule = Callable[[int, int, int, int], int]


@dataclass
class Keda:
    """What KEDA and the autoscaler below it make of `helm/troupe`'s ScaledObject: cards for jobs
    that wait and, where `running`, jobs in hand; up by at most as many as there are in 15 s; down
    by at most a tenth in a minute, to the most that was wanted in the last five.

    https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ ("Algorithm
    details", "Configurable scaling behavior").
    """

    least: int
    most: int
    running: bool = True
    _lately: list[tuple[int, int]] = field(default_factory=list)
    _downs: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, queued: int, running: int, cards: int, now: int) -> int:
        """See Rule."""
        metric = queued + (running if self.running else 0)
        wanted = cards if cards and abs(metric / cards - 1) <= 0.1 else metric
        wanted = min(max(wanted, self.least), self.most)
        self._lately = [one for one in self._lately if one[0] > now - 300_000] + [(now, wanted)]
        if wanted > cards:
            return min(wanted, max(2 * cards, cards + 4))
        wanted = max(wanted, *(one[1] for one in self._lately))
        self._downs = [one for one in self._downs if one[0] > now - 60_000]
        gone = sum(one[1] for one in self._downs)
        allowed = max(math.ceil((cards + gone) * 0.1) - gone, 0)
        less = min(max(cards - wanted, 0), allowed)
        if less:
            self._downs.append((now, less))
        return cards - less


@dataclass
class Account:
    """What a run came to. Times in ms."""

    starts: list[tuple[str, int]] = field(default_factory=list)  # every start, in order
    waits: dict[str, list[int]] = field(default_factory=dict)  # by tenant, to the first start
    ended: int = 0
    work: int = 0  # of finished jobs, what their steps take
    held: int = 0  # of cards, from their order to their end
    handed_back: int = 0
    expired: int = 0
    last: int = 0
    line: list[tuple[int, int, int, int]] = field(default_factory=list)  # see Fleet.look
    got: dict[str, int] = field(default_factory=dict)  # card time while all three wait


class Fleet:
    """One run. rule: how many cards there should be, asked every 15 s."""

    def __init__(self, world: World, queue: Queue, rule: Rule, first: int) -> None:
        self.world, self.queue, self.rule = world, queue, rule
        self.account = Account(waits={who: [] for who in TENANTS}, got=dict.fromkeys(TENANTS, 0))
        self._rng = random.Random(world.seed + 1)
        self._events: list[tuple[int, int, str, int]] = []
        self._number = 0
        self._cards: dict[int, int] = {}  # card -> when it was ordered
        self._ready: set[int] = set()
        self._idle: list[int] = []
        self._hands: dict[int, tuple[str, int, int]] = {}  # card -> job, since, when it would end
        self._order: list[int] = []  # cards, for a random choice
        self._left: dict[str, int] = {}
        self._jobs: dict[str, Job] = {}
        self._begun: set[str] = set()
        self._dead: dict[int, str] = {}
        self._waiting = dict.fromkeys(TENANTS, 0)
        for _ in range(first):
            self._buy(0, ready=True)

    def run(self, every_ms: int = 300_000) -> Account:
        """Until every job has ended."""
        jobs = asked(self.world)
        self._plan(0, "rule", 0)
        self._plan(0, "look", every_ms)
        upcoming = next(jobs, None)
        while self.account.ended < self.world.jobs:
            if upcoming is not None and (not self._events or upcoming.at <= self._events[0][0]):
                self._arrive(upcoming)
                upcoming = next(jobs, None)
                continue
            now, _, kind, about = heapq.heappop(self._events)
            getattr(self, f"_on_{kind}")(now, about)
        self.account.held += sum(self.account.last - at for at in self._cards.values())
        return self.account

    def _plan(self, at: int, kind: str, about: int) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, kind, about))

    def _arrive(self, job: Job) -> None:
        self._jobs[job.ref] = job
        self._left[job.ref] = job.lasts_ms
        self._waiting[job.ref.partition("/")[0]] += 1
        self.queue.submit(job.at, job.ref, job.cost)
        self._fill(job.at)

    def _fill(self, now: int) -> None:
        """Idle cards take what waits."""
        while self._idle:
            card = self._idle.pop()
            if card not in self._ready or card in self._hands:
                continue  # it has gone
            ref = self.queue.claim(now)
            if ref is None:
                self._idle.append(card)
                return
            self._begin(now, card, ref)

    def _begin(self, now: int, card: int, ref: str) -> None:
        job, who = self._jobs[ref], ref.partition("/")[0]
        self.account.starts.append((ref, now))
        self._waiting[who] -= 1
        if ref not in self._begun:
            self._begun.add(ref)
            self.account.waits[who].append(now - job.at)
        end = now + int(self.world.start_s * 1000) + self._left[ref]
        self._hands[card] = ref, now, end
        self._plan(end, "end", card)

    def _on_end(self, now: int, card: int) -> None:
        if card not in self._hands or self._hands[card][2] != now:
            return  # it was lost before
        ref, since, _ = self._hands.pop(card)
        self._share(ref, now - since)
        self.queue.commit(now, ref)
        self.account.ended += 1
        self.account.work += self._jobs.pop(ref).lasts_ms
        self.account.last = now
        del self._left[ref]
        self._idle.append(card)
        self._fill(now)

    def _share(self, ref: str, took: int) -> None:
        """Who had the cards, while all had reason to want them."""
        if all(self._waiting.values()):
            self.account.got[ref.partition("/")[0]] += took

    def _stop(self, now: int, card: int) -> str | None:
        """A card's job is put down; what was saved of it counts."""
        if card not in self._hands:
            return None
        ref, since, _ = self._hands.pop(card)
        self._share(ref, now - since)
        saved = int(self.world.save_s * 1000)
        made = max(now - since - int(self.world.start_s * 1000), 0)
        self._left[ref] -= made // saved * saved
        self._waiting[ref.partition("/")[0]] += 1
        return ref

    def _buy(self, now: int, ready: bool = False) -> None:
        self._number += 1
        card = self._number
        self._cards[card] = now
        self._order.append(card)
        if ready:
            self._on_ready(now, card)
        else:
            self._plan(now + int(self.world.boot_s * 1000), "ready", card)

    def _on_ready(self, now: int, card: int) -> None:
        if card not in self._cards:
            return
        self._ready.add(card)
        self._idle.append(card)
        if self.world.lost_an_hour:
            lives = self._rng.expovariate(self.world.lost_an_hour) * HOUR_MS
            self._plan(now + int(lives) + 1, "lost", card)
        self._fill(now)

    def _sell(self, now: int, card: int) -> None:
        self.account.held += now - self._cards.pop(card)
        self._ready.discard(card)

    def _on_lost(self, now: int, card: int) -> None:
        """The cloud takes a card back."""
        if card not in self._cards:
            return
        self._sell(now, card)
        if self._rng.random() < self.world.notice:
            self._leave(now, card)
        elif (ref := self._stop(now, card)) is not None:
            # The last heartbeat was up to a third of a lease ago.
            lease = self.world.lease_s * self._rng.uniform(2 / 3, 1)
            self._dead[card] = ref
            self._plan(now + int(lease * 1000) + 2, "expired", card)

    def _leave(self, now: int, card: int) -> None:
        if (ref := self._stop(now, card)) is not None:
            self.account.handed_back += 1
            self.queue.hand_back(now, ref)
            self._fill(now)

    def _on_expired(self, now: int, card: int) -> None:
        self.account.expired += 1
        again = self.queue.expire(now, self._dead.pop(card))
        self._plan(again, "again", 0)

    def _on_again(self, now: int, _: int) -> None:
        self._fill(now)

    def _on_rule(self, now: int, _: int) -> None:
        queued, running = self.queue.sizes()
        wanted = self.rule(queued, running, len(self._cards), now)
        while len(self._cards) < wanted:
            self._buy(now)
        while len(self._cards) > wanted:
            self._drop(now)
        self._plan(now + 15_000, "rule", 0)

    def _drop(self, now: int) -> None:
        """Kubernetes ends pods that are not ready first; of the others it knows none better."""
        place = self._rng.randrange(len(self._order))
        card = self._order[place]
        self._order[place] = self._order[-1]
        self._order.pop()
        if card in self._cards:
            self._sell(now, card)
            self._leave(now, card)

    def _on_look(self, now: int, every: int) -> None:
        """A point of the plot: time, jobs that wait, jobs in hand, cards."""
        queued, running = self.queue.sizes()
        self.account.line.append((now, queued, running, len(self._cards)))
        self._plan(now + every, "look", every)
