"""Quotas: what a tenant may ask for, checked and reserved before any picture is decoded.

Two token buckets for each tenant whose bounds `service.tenants` keeps, refilled by Redis's clock:
requests, holding a minute's, and GPU-milliseconds, holding an hour's. A request reserves its
estimated cost; when its job has ended, what it really took is charged instead, once. A reservation
that is bound to no job in time (its gateway died) goes back by itself, and what that gateway had
stored is swept with the graves of `service.ledger`.

Keys, under the prefix:

    quota:<tenant>      hash   granted, settled, reserved: GPU-ms that were ever put in, charged for
                               good, and held now; bound, at_ms: the bucket as of its last filling;
                               calls, calls_ms: the requests' bucket, in 1/60000 of a request
    reservation:<ref>   hash   cost_ms, estimate_ms, preset; job: 1 once it is bound to one
    reserved            zset   refs by when to look at them next, ms
    cost:<preset>       hash   factor: what jobs took over what was estimated, as a moving mean in
                               which no job counts for more than four times it, or less than a
                               quarter; seed: the same by the worker that came up last, for as long
                               as no job has ended

Their Lua is in `service/lua/quota.lua`, because a job is submitted and its cost reserved in one go.

Conservation: what is in the bucket = granted - settled - reserved. A job that takes longer than was
reserved is charged in full, so the bucket may owe; nothing is reserved from it until it has paid.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import redis

from service import scripts
from service.errors import QuotaExceeded, RateLimited, RequestError
from service.jobs import Quota
from service.ledger import answering
from service.settings import Settings

HOLD_S = 300.0  # from reserving to binding: uploads are decoded and stored meanwhile
LOOK_S = 15.0  # between two looks at a running job

@dataclass(frozen=True)
class Standing:
    """A tenant's buckets just after a reservation. None: not bound.

    cost_s: GPU-seconds that were reserved.
    """

    cost_s: float
    requests_per_minute: int | None
    requests_left: float
    gpu_seconds_per_hour: float | None
    gpu_seconds_left: float

    @property
    def headers(self) -> dict[str, str]:
        """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-10)."""
        policies, limits = [], []
        if (bound := self.requests_per_minute) is not None:
            policies.append(f'"requests";q={bound};w=60')
            limits.append(_limit("requests", self.requests_left, bound, 60))
        if (gpu := self.gpu_seconds_per_hour) is not None:
            policies.append(f'"gpu";q={int(gpu)};qu="gpu-seconds";w=3600')
            limits.append(_limit("gpu", self.gpu_seconds_left, gpu, 3600))
        if not policies:
            return {}
        return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(limits)}


def _limit(name: str, left: float, bound: float, window_s: int) -> str:
    """What is left, and after how many seconds the bucket will be full."""
    full_s = -int(-(bound - left) * window_s // bound) if bound else window_s
    return f'"{name}";r={max(int(left), 0)};t={full_s}'


class Limits:
    """Reserves, charges and gives back. Raises LedgerDown when Redis does not answer.

    A reservation has the name of the job that it is for, `<tenant>/<video id>`. Every call may be
    repeated: what was done is not done again.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        hold_s: float = HOLD_S,
        look_s: float = LOOK_S,
    ) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._hold_ms, self._look_ms = int(hold_s * 1000), int(look_s * 1000)
        self._scripts = {
            name: client.register_script(scripts.source(f"quota_{name}"))
            for name in ("bind", "reserve", "settle", "sweep")
        }

    def _run(self, name: str, *args: str | int | float) -> list[Any]:
        with answering():
            answer: list[Any] = self._scripts[name](keys=[self._prefix], args=args)
        return answer

    def quota(self, preset: str, estimate_s: float) -> Quota:
        """What has to be reserved for a job, here or by `Ledger.submit`."""
        return Quota(estimate_s * 1000, preset, self._hold_ms, self._look_ms)

    def reserve(self, ref: str, preset: str, estimate_s: float) -> Standing:
        """Take a request and its estimated cost, times the preset's factor, from the buckets.

        Raises:
            RequestError: more than the tenant's whole bucket; waiting would not help.
            RateLimited: too many requests a minute.
            QuotaExceeded: too many GPU-seconds an hour.
        """
        quota = self.quota(preset, estimate_s)
        return standing_of(self._run("reserve", ref, *astuple(quota)))

    def bind(self, ref: str) -> None:
        """From now on the reservation ends with its job, not by itself."""
        self._run("bind", ref, self._look_ms)

    def settle(self, ref: str, spent_s: float, learn: bool = False) -> bool:
        """Charge what a job took in place of what was reserved. False: that was done before.

        learn: let the preset's factor follow, for a job that was made in one go.
        """
        [word] = self._run("settle", ref, round(spent_s * 1000), int(learn))
        return bool(word == "ok")

    def release(self, ref: str) -> bool:
        """Give all of it back: there will be no job."""
        return self.settle(ref, 0.0)

    def seed(self, preset: str, factor: float) -> None:
        """What a worker's machine takes over what is estimated, until a job's end tells better."""
        with answering():
            self._redis.hset(f"{self._prefix}cost:{preset}", "seed", repr(factor))

    def sweep(self, most: int = 100) -> int:
        """Settle what has ended by its record, and give back what was never bound. Returns how many
        reservations it looked at; each is looked at again after a while."""
        return int(self._run("sweep", most, self._look_ms)[0])


def standing_of(answer: Sequence[Any]) -> Standing:
    """What the script says. Raises what `Limits.reserve` raises."""
    word, wait, pause, cost, rate, left, gpu, room = answer
    standing = Standing(
        cost_s=cost / 1000,
        requests_per_minute=None if rate < 0 else rate,
        requests_left=left / 60000,
        gpu_seconds_per_hour=None if gpu < 0 else gpu / 1000,
        gpu_seconds_left=room / 1000,
    )
    if word != "ok":
        _refuse(word, wait / 1000, pause / 1000, standing)
    return standing


def _refuse(word: str, wait_s: float, pause_s: float, standing: Standing) -> None:
    """Raises what `Limits.reserve` raises."""
    if standing.requests_per_minute == 0:
        raise RequestError("This tenant may make no videos.", None, "quota_too_small")
    asked = f"This video is estimated at {standing.cost_s:g} GPU-seconds"
    if word == "never":
        raise RequestError(
            f"{asked}, more than the {standing.gpu_seconds_per_hour:g} of a whole hour's quota."
            " Ask for fewer steps, frames or pixels.",
            code="quota_too_small",
        )
    if pause_s > wait_s:
        left = max(standing.gpu_seconds_left, 0)
        raise QuotaExceeded(
            f"{asked}; {left:g} of {standing.gpu_seconds_per_hour:g} an hour are left.",
            pause_s,
            standing.headers,
        )
    raise RateLimited(
        f"New videos a minute: at most {standing.requests_per_minute}.", wait_s, standing.headers
    )
