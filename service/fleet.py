"""What the workers have learnt of models, for all of them: which must not be served, and how jobs
went with each.

In Redis, below `<prefix>:models:`, a hash `quarantine` (digest -> JSON) and for each digest a hash
`outcomes:<digest>` of counts and sums. How often a worker died of a job, or hung, is counted there
by the ledger (`lua/reap.lua`), under `died:<machine>`.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import redis

from service.ledger import answering
from service.settings import Settings

# Asked again after every job, so two standard errors would be passed by chance. With these an equal
# canary is taken back within 200 jobs in one case of 200 (simulated).
MIN_FAILED = 4
MIN_SCORES = 16
SURE = 4.0
# Deaths on one machine that count against a canary: fewer than it takes to be judged by, so that a
# broken machine, which takes one job after the other, does not do it alone.
BY_ONE = MIN_FAILED - 1
DIED = "died:"


@dataclass(frozen=True)
class Quarantined:
    """A model that is served no more. digest: as channels name it. worker: who found out."""

    digest: str
    reason: str
    worker: str
    at_ms: int


@dataclass(frozen=True)
class Outcomes:
    """How jobs went with a model. total, squares: sums over those whose likeness was scored. died:
    jobs that were lost with their workers, by machine; no others are in `failed`."""

    jobs: int = 0
    failed: int = 0
    scored: int = 0
    total: float = 0.0
    squares: float = 0.0
    died: Mapping[str, int] = field(default_factory=dict)

    def worse_than(self, other: "Outcomes") -> str:
        """In words, why it is worse beyond chance; empty where it is not, or too few jobs tell."""
        failed = self.failed + sum(min(times, BY_ONE) for times in self.died.values())
        share = failed / max(self.jobs, 1)
        usual = (other.failed + sum(other.died.values())) / max(other.jobs, 1)
        error = (max(usual, 0.05) * (1 - min(usual, 0.95)) / max(self.jobs, 1)) ** 0.5
        if failed >= MIN_FAILED and share > usual + SURE * error:
            return f"{failed} of {self.jobs} jobs failed, {usual:.0%} elsewhere"
        if min(self.scored, other.scored) < MIN_SCORES:
            return ""
        (mean, var), (wanted, spread) = (x._moments() for x in (self, other))
        if mean < wanted - SURE * (var / self.scored + spread / other.scored) ** 0.5:
            return f"likeness {mean:.3f} in {self.scored} jobs, {wanted:.3f} elsewhere"
        return ""

    def _moments(self) -> tuple[float, float]:
        mean = self.total / self.scored
        return mean, max(self.squares / self.scored - mean**2, 0.0)


class Fleet:
    """Raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:models"

    def quarantine(self, digest: str, reason: str, worker: str) -> None:
        """From now on no worker serves this model; the first reason stays."""
        told = Quarantined(digest, reason[:500], worker, int(time.time() * 1000))
        with answering():
            self._redis.hsetnx(f"{self._prefix}:quarantine", digest, json.dumps(asdict(told)))

    def release(self, digest: str) -> bool:
        """A model may be served again, and is counted anew. False: it was not in quarantine."""
        with answering():
            self._redis.delete(f"{self._prefix}:outcomes:{digest}")
            return bool(self._redis.hdel(f"{self._prefix}:quarantine", digest))

    def quarantined(self) -> dict[str, Quarantined]:
        """By digest."""
        with answering():
            found = self._redis.hgetall(f"{self._prefix}:quarantine")
        told = (Quarantined(**json.loads(text)) for text in found.values())
        return {one.digest: one for one in told}

    def note(self, digest: str, failed: bool, score: float | None = None) -> None:
        """A job has ended. score: its likeness, where somebody judged."""
        added: dict[str, float] = {"jobs": 1, "failed": int(failed)}
        if score is not None:
            added |= {"scored": 1, "total": score, "squares": score**2}
        with answering():
            pipe = self._redis.pipeline()
            for name, value in added.items():
                pipe.hincrbyfloat(f"{self._prefix}:outcomes:{digest}", name, value)
            pipe.execute()

    def outcomes(self, digest: str) -> Outcomes:
        """Of all workers, since the model was first served or released."""
        with answering():
            found = self._redis.hgetall(f"{self._prefix}:outcomes:{digest}")
        told = {str(name): float(value) for name, value in found.items()}
        died = {n.removeprefix(DIED): int(told[n]) for n in told if n.startswith(DIED)}
        jobs, failed, scored = (int(told.get(name, 0)) for name in ("jobs", "failed", "scored"))
        sums = told.get("total", 0.0), told.get("squares", 0.0)
        return Outcomes(jobs, failed, scored, *sums, died)
