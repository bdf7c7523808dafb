"""How a video is deleted, by its owner or along with a subject of its."""

from contextlib import suppress

from service.auth import Caller
from service.deps import House
from service.errors import NotFound
from service.refs import home


def remove_video(ref: str, caller: Caller, house: House) -> None:
    """Forget a video and its pictures; a running job is stopped within a step.

    A worker that has it in hand may still write a file; the reaper sweeps those. The audit chain
    keeps a receipt, which names nobody. Raises NotFound.
    """
    with suppress(NotFound):  # of a deletion that was cut short, the rest is done
        house.limits.settle(ref, house.ledger.read(ref).spent_s)
    state = house.ledger.delete(ref)
    house.audit.append(caller.tenant, caller.key_id, "video.deleted", ref, {"was": state})
    house.doorbell.forget(ref)
    house.blobs.delete(home(ref))
    if state not in {"running", "deleted"}:
        house.ledger.bury(ref)
