"""/healthz: the process lives. /readyz: a job sent now would be made, or why not."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from service.deps import House, Insider, TheHouse
from service.errors import ServiceError
from service.roster import WorkerState

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Always 200 while the process answers; asks nobody."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(response: Response, house: TheHouse, insider: Insider) -> dict[str, Any]:
    """200 when Redis, the store and at least one worker are fit; else 503, with each reason where
    no keys are required or the caller's has the scope admin."""
    checks = {
        "redis": _check(house.durable.check),
        "blobs": _told(house.store.fault()),
        "workers": _check(lambda: _workers(house)),
    }
    ready = all(check["ok"] for check in checks.values())
    response.status_code = 200 if ready else 503
    status = {"status": "ready" if ready else "not ready"}
    return {**status, "checks": checks, **_present(house)} if insider else status


def _check(probe: Callable[[], None]) -> dict[str, Any]:
    try:
        probe()
    except ServiceError as error:
        return _told(str(error))
    return _told("")


def _told(fault: str) -> dict[str, Any]:
    return {"ok": not fault, "message": fault or "ok"}


def _workers(house: House) -> None:
    present = house.roster.present()
    if not present:
        raise ServiceError("No worker is alive. Jobs are accepted and wait.")
    makers = [worker for worker in present if worker.makes_videos]
    fit = [worker for worker in makers if worker.healthy]
    if not fit:
        raise ServiceError(f"No worker can take a job. {_reasons(makers)}")
    encoders = [worker for worker in present if not worker.makes_videos]
    served = {worker.encoders for worker in encoders if worker.healthy}
    if all(worker.role == "denoise" and worker.encoders not in served for worker in fit):
        why = _reasons([worker for worker in encoders if not worker.healthy])
        if served:
            why = "The workers that encode have other weights."
        raise ServiceError(f"No worker encodes, and those alive need one. {why}")


def _reasons(workers: Sequence[WorkerState]) -> str:
    found = sorted({f"{worker.state}: {worker.message}" for worker in workers})
    return "; ".join(found) or "There is none of this kind."


def _present(house: House) -> dict[str, Any]:
    """The workers and the books, where Redis can be asked for them."""
    try:
        books = house.ledger.books()
        workers = [asdict(worker) for worker in house.roster.present()]
    except ServiceError:
        return {"workers": []}
    return {"workers": workers, "books": {**asdict(books), "balanced": books.balanced}}
