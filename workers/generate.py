"""THE task: a doorbell rings; claim the job whose turn it is, make the video, commit it.

The doorbell's ref says who rang, not what to do. The ledger decides at every point: which job it
is, if any; a heartbeat that is answered with anything but ok ends the work at that step, and a
commit with a stale token changes nothing. Celery learns only whether the doorbell was answered.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from celery import shared_task

from engine.errors import Cancelled, SpecError, TroupeError
from service import traces
from service.doorbell import TASK
from service.errors import BlobError, LedgerDown
from service.jobs import Claim
from service.ledger import CANCELLED
from service.logs import about, named
from service.refs import home
from workers.attempt import Attempt
from workers.boot import Station, station
from workers.work import Work

if TYPE_CHECKING:
    from engine.pipeline import Engine

log = logging.getLogger(__name__)
COMMIT_TRIES = 8
T = TypeVar("T")


@shared_task(name=TASK)  # type: ignore[untyped-decorator]
def generate(_: str = "") -> None:
    """Answer one doorbell. (Gateways of earlier versions send a ref with it.)"""
    place = station()
    with place.heeding_sigterm():
        answer(place)


def answer(place: Station) -> str:
    """Work on the job whose turn it is. Returns how that ended, for the log."""
    engine = place.engine
    if engine is None:
        log.warning("nothing taken: this worker has no engine")
        return "unfit"
    if place.shelf.refusal:
        log.warning("nothing taken: %s", place.shelf.refusal)
        return "unfit"
    claim = _claim(place, engine)
    if claim is None:
        return "none"
    told = {"attempt": claim.attempt, "token": claim.token}
    with place.using, about(claim.ref, **told), _traced(claim, place, told):
        place.take(claim.ref)
        try:
            outcome = carry_out(claim, place, engine)
        finally:
            place.take("")
            place.ring_next(claim.ref)
        traces.note(outcome=outcome)
        made_by = {"model_digest": engine.digest}  # known only now: a claim may change weights
        log.info("%s attempt %d: %s", claim.ref, claim.attempt, outcome, extra=made_by)
    return outcome


@contextmanager
def _traced(claim: Claim, place: Station, told: dict[str, Any]) -> Iterator[None]:
    """A span around the attempt. The first writes down where it is, for later ones to link to."""
    about_it = named(claim.ref) | told
    with traces.span("attempt", claim.trace, claim.first_trace, **about_it):
        here = traces.carried()
        if here and not claim.first_trace:
            with suppress(LedgerDown):
                place.ledger.beat(claim, first_trace=here)
        yield


def _claim(place: Station, engine: "Engine") -> Claim | None:
    """Asked again with the same holder while Redis is away: an answer may have got lost."""
    holder = uuid.uuid4().hex
    try:
        return patiently(
            lambda: place.ledger.claim(holder, place.id, engine.tiers), place.leaving, tries=3
        )
    except LedgerDown:
        log.warning("nothing taken: no ledger")
        return None


def carry_out(claim: Claim, place: Station, engine: "Engine") -> str:
    """From a claim to its end: completed, cancelled, failed, or somebody else's by now."""
    work = Work(claim, place)
    try:
        with work.leased():
            named = claim.request.get("model", "")
            model = "" if named == engine.preset.name else named
            _tell_weights(claim, place, model)
            if not place.fit(claim.ref, model, work.hear):
                work.stopped = "leave"
                raise Cancelled("no engine")
            traces.note(model_digest=engine.digest)
            result = Attempt(claim, place, engine, work).make()
            word = _commit(claim, place, result)
        if word == "ok":
            _count(place, False, result)
            work.settle()
            return "completed"
    except Cancelled:
        word = work.stopped
    except LedgerDown:
        # The lease runs out by itself; the reaper queues the job again when Redis is back.
        log.warning("%s left to the reaper: no ledger", claim.ref)
        return "adrift"
    except SpecError as error:
        word = place.ledger.fail(claim, "invalid_request", str(error), retry=False)
    except BlobError as error:
        word = place.ledger.fail(claim, error.code, str(error), retry=True)
    except TroupeError as error:
        _count(place, True)
        word = place.ledger.fail(claim, "generation_failed", str(error), retry=True)
    except Exception as error:  # the engine's: recorded and told; Celery dies of a MemoryError
        log.exception("%s failed", claim.ref)
        _count(place, True)
        word = place.ledger.fail(claim, "engine_error", _told(error), retry=True)
    return _settle(claim, place, work, word)


def _tell_weights(claim: Claim, place: Station, model: str) -> None:
    """Before they are loaded: where that ends the process, nobody else knows what it died of."""
    if place.reload is not None:
        weights = place.reload.meant(claim.ref, model)
        with suppress(LedgerDown):
            place.ledger.beat(claim, weights=weights)


def _count(place: Station, failed: bool, result: dict[str, Any] | None = None) -> None:
    """How a job went with the weights that it was made with."""
    if place.reload is not None:
        likeness = (result or {}).get("identity") or {}
        place.reload.note(failed, likeness.get("overall"))


def _told(error: Exception) -> str:
    return f"The engine failed: {type(error).__name__}: {error!s:.300}"


def _settle(claim: Claim, place: Station, work: Work, word: str) -> str:
    """What an attempt without a video leaves behind is removed."""
    if word == "cancel":
        place.ledger.fail(claim, "cancelled", CANCELLED, retry=False)
    elif word == "leave":
        place.ledger.hand_back(claim)
    work.clear()
    if word in {"ok", "cancel"}:
        work.discard()
    if word == "gone":
        place.blobs.delete(home(claim.ref))
        place.ledger.bury(claim.ref)
    return "failed" if word == "ok" else word


def _commit(claim: Claim, place: Station, result: dict[str, Any]) -> str:
    """A finished video is worth waiting for Redis to come back."""
    return patiently(
        lambda: place.ledger.commit(claim, result), place.leaving, tries=COMMIT_TRIES
    )


def patiently(
    act: Callable[[], T],
    leaving: threading.Event,
    wait: Callable[[float], None] = time.sleep,
    tries: int = COMMIT_TRIES,
) -> T:
    """Try until the ledger answers, with growing pauses, about a minute in all.

    Raises:
        LedgerDown: it never did.
    """
    for attempt in range(tries):
        try:
            return act()
        except LedgerDown:
            if attempt == tries - 1 or leaving.is_set():
                raise
            wait(min(0.5 * 2**attempt, 15))
    raise AssertionError("unreachable: the loop returns or raises")
