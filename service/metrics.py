"""What Prometheus reads at GET /metrics.

Of jobs and workers it is the ledger's word, read in one script at the time of asking: gauges as
they stand, and counters that the transitions themselves keep, so that they are true across
processes and restarts. Every gateway tells the same of these: take `max` over gateways, not `sum`.
Of requests it is this process's own count. No label ever names a tenant or a job.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
CLIENT_LEFT = 499


@dataclass(frozen=True)
class Family:
    """One metric of the ledger's `counts`: the name there, the name told, its help, its labels, and
    how many of the ledger's units are one of the metric's."""

    key: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    unit: int = 1


COUNTERS = (
    Family("jobs", "jobs", "Jobs that ended.", ("outcome", "reason")),
    Family("starts", "attempts", "Starts of jobs."),
    Family("ended", "attempts_ended", "Starts that are over, by how they ended.", ("how",)),
    Family("lease_expired", "lease_expired", "Leases that ran out."),
    Family("lease_spared", "lease_spared", "Leases renewed: the ledger itself had been away."),
    Family("stalled", "stalled", "Jobs taken from a worker because they did not get on."),
    Family("commit_rejected", "commit_rejected", "Commits that were refused.", ("reason",)),
    Family("redispatch", "reaper_redispatch", "Doorbells that the reaper rang again."),
    Family("gpu_ms", "gpu_seconds", "Seconds for which workers held jobs.", unit=1000),
    Family("video_ms", "video_seconds", "Seconds of finished video.", unit=1000),
)
HISTOGRAMS = (
    Family("queue_wait", "queue_wait_seconds", "From submission to the first start."),
    Family("first_progress", "time_to_first_progress_seconds", "From submission to a first step."),
    Family("stage", "stage_seconds", "Stages of jobs that were completed.", ("stage",)),
    Family("duration", "job_duration_seconds", "From submission to completion."),
)


class Metrics:
    """Of one gateway process."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second series for each, which nobody asks for
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "troupe_http_requests",
            "Requests that were answered; 499: the client left before.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "troupe_http_request_seconds",
            "From the request to the answer's first byte.",
            ("method", "route"),
            buckets=BUCKETS_S,
            registry=self._registry,
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """One request is answered."""
        known = method if method in METHODS else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(known, route).observe(seconds)

    def text(self, figures: dict[str, Any] | None) -> bytes:
        """In Prometheus's text format. figures: `Ledger.figures`; None: it does not answer."""
        ledger = CollectorRegistry()
        ledger.register(_Ledger(figures))
        return generate_latest(ledger) + generate_latest(self._registry)


class Measured:
    """Around every request: counts it by its route's template and its status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI. A stream of events counts when it begins, not when it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status, took = time.perf_counter(), CLIENT_LEFT, 0.0

        async def noted(message: Message) -> None:
            nonlocal status, took
            if message["type"] == "http.response.start":
                status, took = message["status"], time.perf_counter() - begin
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception:
            status = 500 if status == CLIENT_LEFT else status  # answered outside of this
            raise
        finally:
            took = took or time.perf_counter() - begin
            self._metrics.count(scope["method"], _route(scope), status, took)
            _tell(scope, status, took)


def _tell(scope: Scope, status: int, took: float) -> None:
    """A line in the log; for what was only read, and well, none."""
    level = logging.DEBUG if scope["method"] == "GET" and status < 400 else logging.INFO
    if log.isEnabledFor(level):
        extra = {
            "request_id": scope.get("state", {}).get("request_id"),
            "method": scope["method"],
            "route": _route(scope),
            "status": status,
            "ms": round(1000 * took, 1),
        }
        log.log(level, "answered", extra=extra)


def _route(scope: Scope) -> str:
    """The template of the route that answered, as /v1/videos/{video_id}; /studio for a page."""
    return str(getattr(scope.get("route"), "path", "") or scope.get("root_path") or "none")


class _Ledger(Collector):
    def __init__(self, figures: dict[str, Any] | None) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """The ledger's families."""
        figures = self._figures
        yield _gauge("ledger_up", "Whether the ledger answers.", 0 if figures is None else 1)
        if figures is None:
            return
        yield from _gauges(figures)
        submitted = figures["books"].get("submitted", 0)
        yield CounterMetricFamily("troupe_jobs_submitted", "Accepted jobs.", value=submitted)
        counts = figures["counts"]
        for family in COUNTERS:
            yield _from_counts(family, counts)
        for family in HISTOGRAMS:
            yield _histogram(family, counts, figures["buckets"])


def _gauges(figures: dict[str, Any]) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("troupe_jobs", "Jobs that have not ended.", labels=["state"])
    for state in ("queued", "running"):
        jobs.add_metric([state], figures[state])
    yield jobs
    labels = ["state", "role", "digest"]
    workers = GaugeMetricFamily("troupe_workers", "Workers that are alive.", labels=labels)
    for kind, number in sorted(figures["workers"].items()):
        workers.add_metric(kind.split("|"), number)
    yield workers
    queued, lease = figures["queued_age"] / 1000, figures["lease_age"] / 1000
    yield _gauge("oldest_queued_age_seconds", "Of the job that was submitted first.", queued)
    yield _gauge("oldest_lease_age_seconds", "Since the heartbeat furthest back.", lease)
    yield _gauge("quarantined", "Jobs that workers died of.", figures["quarantined"])
    yield _gauge("webhooks_due", "Ends of jobs that have to be told.", figures["outbox"])


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(f"troupe_{name}", told, value=value)


def _from_counts(family: Family, counts: dict[str, int]) -> Metric:
    if not family.labels:
        value = counts.get(family.key, 0) / family.unit
        return CounterMetricFamily(f"troupe_{family.name}", family.help, value=value)
    found = CounterMetricFamily(f"troupe_{family.name}", family.help, labels=family.labels)
    for rest, value in _under(family.key, counts):
        found.add_metric(rest, value)
    return found


def _histogram(family: Family, counts: dict[str, int], bounds: Sequence[int]) -> Metric:
    found = HistogramMetricFamily(f"troupe_{family.name}", family.help, labels=family.labels)
    of: dict[tuple[str, ...], dict[str, int]] = {} if family.labels else {(): {}}
    for rest, value in _under(family.key, counts):
        of.setdefault(tuple(rest[:-1]), {})[rest[-1]] = value
    for labels, given in sorted(of.items()):
        total, buckets = 0, []
        for bound in (*map(str, bounds), "inf"):
            total += given.get(bound, 0)
            buckets.append(("+Inf" if bound == "inf" else str(int(bound) / 1000), total))
        found.add_metric(labels, buckets, given.get("sum", 0) / 1000)
    return found


def _under(key: str, counts: dict[str, int]) -> list[tuple[list[str], int]]:
    """Label values and value of every count of this name."""
    parts = ((name.split("|"), value) for name, value in sorted(counts.items()))
    return [(names[1:], value) for names, value in parts if names[0] == key]
