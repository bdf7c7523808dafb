"""What `submit.lua` is told of a new job, and what its answer means."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from service.errors import IdempotencyConflict, LedgerDown, QueueFull
from service.jobs import Quota, Taken, Terms, job_of
from service.scripts import pairs

PRIORITIES = {"low": -1, "normal": 0, "high": 1}


def submission(
    ref: str, request: Mapping[str, Any], terms: Terms, max_queued: int, quota: Quota | None
) -> list[Any]:
    """What `submit.lua` is told."""
    fields = {"priority": terms.priority}
    if terms.webhook:
        fields["webhook"] = terms.webhook
    if terms.trace:
        fields["traceparent"] = terms.trace
    return [
        ref,
        json.dumps(request),
        max_queued,
        PRIORITIES[terms.priority],
        max(terms.cost, 1e-3),
        terms.tier,
        terms.key,
        terms.digest,
        terms.lasts_s * 1000,
        int(terms.honour),
        *(("", "", "", "") if quota is None else astuple(quota)),
        *pairs(fields),
    ]


def taken(answer: Sequence[Any], max_queued: int) -> Taken:
    """What `submit.lua` answered. Raises what `Ledger.submit` raises."""
    word, *rest = answer
    if word == "late":
        raise LedgerDown("Taking this request in took too long. Send it again.")
    if word == "full":
        raise QueueFull(
            f"{max_queued} jobs are waiting already, which is the limit. Try again later."
        )
    if word == "tenant_full":
        raise QueueFull("As many of your jobs wait as you may have waiting. Try again later.")
    if word == "refused":
        return Taken("", standing=tuple(rest[0]))
    ref, *told = same(word, rest), *rest[1:]
    return Taken(ref, job_of(ref, told[1]), tuple(told[0])) if told else Taken(ref)


def same(word: str, rest: Sequence[Any]) -> str:
    """The ref that a key led to. Raises IdempotencyConflict."""
    if word == "conflict":
        raise IdempotencyConflict(
            "Idempotency-Key: it was used for another request within the last day."
            " Send a new key with a new request."
        )
    return str(rest[0])
