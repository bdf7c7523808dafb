"""What the ledger says of jobs: values, as read and as given."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from service.refs import id_of

TERMINAL = ("completed", "failed")


@dataclass(frozen=True)
class Claim:
    """The right to work on one job. `token` fences, `attempt` counts from 1; `saved` is the key of
    the blob from which an earlier start can be gone on with, or empty. `trace` and `first_trace`
    are the traceparents of the request and of the job's first start, where it is traced."""

    ref: str
    token: str
    attempt: int
    request: dict[str, Any]
    saved: str = ""
    trace: str = ""
    first_trace: str = ""


@dataclass(frozen=True)
class Terms:
    """What a job is besides its request.

    priority: low, normal or high, among the tenant's own jobs. cost: what it takes from the
    tenant's share, in GPU-seconds as estimated. tier: which workers can make it. webhook: who is
    told of its end.
    key: a request with the same key and the same `digest` is the same request; with another one it
    is a mistake; that is known for `lasts_s`. honour: whether an earlier one counts, or this one is
    only noted down for a later one.
    """

    priority: str = "normal"
    cost: float = 1.0
    tier: str = "exact"
    webhook: str = ""
    key: str = ""
    digest: str = ""
    honour: bool = True
    lasts_s: int = 24 * 3600
    trace: str = ""


PLAIN = Terms()


@dataclass(frozen=True)
class Quota:
    """What a submission takes from its tenant's quota, see `service.limits`."""

    estimate_ms: float
    preset: str
    hold_ms: int
    look_ms: int


@dataclass(frozen=True)
class Books:
    """The ledger's balance: numbers of jobs. They must always add up."""

    submitted: int
    queued: int
    running: int
    completed: int
    failed: int

    @property
    def balanced(self) -> bool:
        """submitted = queued + running + terminal."""
        return self.submitted == self.queued + self.running + self.completed + self.failed


@dataclass(frozen=True)
class Job:
    """One record, as read. Times in ms since 1970 by Redis's clock.

    `request` and `result` are JSON objects that the gateway and the worker wrote; `fields` is the
    rest of the hash. `place` is how many will start before it, -1 for a job that does not wait.
    For a waiting job, `in_hand` jobs are running, which will together take `rest_ms` more.
    """

    ref: str
    state: str
    request: dict[str, Any]
    result: dict[str, Any]
    fields: Mapping[str, str]
    place: int
    now_ms: int
    mean_ms: int | None
    in_hand: int = 0
    rest_ms: int = 0

    def number(self, name: str) -> int:
        """A whole number of the record; 0 where it was never written."""
        return int(float(self.fields.get(name) or 0))

    def text(self, name: str) -> str | None:
        """A text of the record; None where it was never written or is empty."""
        return self.fields.get(name) or None

    @property
    def id(self) -> str:
        """What the client calls it."""
        return id_of(self.ref)

    @property
    def spent_s(self) -> float:
        """Seconds that workers had it in hand, so far."""
        running = self.state == "running"
        now = self.now_ms - self.number("claimed_ms") if running else 0
        return (self.number("spent_ms") + now) / 1000

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in TERMINAL


@dataclass(frozen=True)
class Taken:
    """What came of a submission.

    ref: of the job that stands for the request. job: if it was made now. standing: what the quota's
    script says, if it was asked; of a request that it refused there is no job.
    """

    ref: str
    job: Job | None = None
    standing: tuple[Any, ...] = ()


def job_of(ref: str, answer: list[Any]) -> Job | None:
    """A Job from READ's answer, or None if there is no such record."""
    now, place, mean, in_hand, rest, flat = answer
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if not fields:
        return None
    return Job(
        ref=ref,
        state=fields.pop("state"),
        request=json.loads(fields.pop("request")),
        result=json.loads(fields.pop("result", "{}")),
        fields=fields,
        place=int(place),
        now_ms=int(now),
        mean_ms=int(mean) if mean else None,
        in_hand=int(in_hand),
        rest_ms=int(float(rest)),
    )
