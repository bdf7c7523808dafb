"""/v1/ops: how the service is, for its operator, and the one thing he may do about it."""

import json
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from service.deps import House, Operator, TheHouse
from service.errors import LedgerUnsafe
from service.refs import ref_of

router = APIRouter(prefix="/v1/ops", tags=["ops"])
LISTS = ("tenants", "running", "line", "quarantine", "failures")


@router.get("")
def overview(caller: Operator, house: TheHouse) -> dict[str, Any]:
    """Queue, jobs in hand, workers, books, what failed; times in ms."""
    seen = house.ledger.overview()
    found = {**seen, **{name: list(seen[name]) for name in LISTS}}
    for one in (*found["quarantine"], *found["failures"]):
        one["history"] = json.loads(one["history"])
    found["tenants"].sort(key=lambda tenant: tenant["name"])
    books = house.ledger.books()
    return {
        **found,
        "workers": [asdict(worker) for worker in house.roster.present()],
        "books": {**asdict(books), "balanced": books.balanced},
        "models": [asdict(one) for one in house.fleet.quarantined().values()],
        "redis": _redis(house),
    }


def _redis(house: House) -> dict[str, Any]:
    try:
        house.durable.check()
    except LedgerUnsafe as error:
        return {"safe": False, "message": str(error)}
    return {"safe": True, "message": "every write is synced, nothing is evicted"}


@router.post("/jobs/{tenant}/{video_id}/cancel")
def cancel(tenant: str, video_id: str, caller: Operator, house: TheHouse) -> dict[str, Any]:
    """Stop a tenant's job, as its owner could; false: it had ended."""
    ref = ref_of(tenant, video_id)
    stopped = house.ledger.cancel(ref)
    if stopped:
        house.audit.append(tenant, caller.key_id, "video.cancelled", ref)
    return {"cancelled": stopped}
