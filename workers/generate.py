"""THE task: a doorbell comes in with an id; claim the job, make the video, commit it.

The ledger decides at every point. A claim that is refused ends the task quietly, a heartbeat
that is answered with anything but ok ends the work at that step, and a commit with a stale token
changes nothing. Celery learns only whether the doorbell was answered.
"""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery import shared_task

from engine.errors import Cancelled, SpecError, TroupeError
from engine.spec import Reference, Spec
from service.doorbell import TASK
from service.errors import BlobError, LedgerDown
from service.ledger import CANCELLED, Claim
from workers.boot import Station, station
from workers.encode import encodings_of, forget
from workers.work import Work, fetch

if TYPE_CHECKING:
    from engine.pipeline import Engine
    from engine.video import Video

log = logging.getLogger(__name__)
COMMIT_TRIES = 8


@shared_task(name=TASK)  # type: ignore[untyped-decorator]
def generate(job_id: str) -> None:
    """Answer one doorbell."""
    place = station()
    with place.heeding_sigterm():
        answer(job_id, place)


def answer(job_id: str, place: Station) -> str:
    """Work on a job if it is there to be worked on. Returns how that ended, for the log."""
    if place.engine is None:
        log.warning("%s stays queued: this worker has no engine", job_id)
        return "unfit"
    claim = place.ledger.claim(job_id, holder=uuid.uuid4().hex)
    if isinstance(claim, str):
        log.info("%s not taken: %s", job_id, claim)
        return claim
    place.take(job_id)
    try:
        outcome = carry_out(claim, place, place.engine)
    finally:
        place.take("")
    log.info("%s attempt %d: %s", job_id, claim.attempt, outcome)
    return outcome


def carry_out(claim: Claim, place: Station, engine: "Engine") -> str:
    """From a claim to its end: completed, cancelled, failed, or somebody else's by now."""
    work = Work(claim, place)
    try:
        with work.leased():
            result = _make(claim, place, engine, work)
            word = _commit(claim, place, result)
        if word == "ok":
            return "completed"
    except Cancelled:
        word = work.stopped
    except LedgerDown:
        # The lease runs out by itself; the reaper queues the job again when Redis is back.
        log.warning("%s left to the reaper: no ledger", claim.job_id)
        return "adrift"
    except SpecError as error:
        word = place.ledger.fail(claim, "invalid_request", str(error), retry=False)
    except BlobError as error:
        word = place.ledger.fail(claim, error.code, str(error), retry=True)
    except TroupeError as error:
        word = place.ledger.fail(claim, "generation_failed", str(error), retry=True)
    except Exception as error:  # the engine's: recorded, told to the client, and raised on
        log.exception("%s failed", claim.job_id)
        place.ledger.fail(claim, "engine_error", _told(error), retry=True)
        work.clear()
        raise
    return _settle(claim, place, work, word)


def _told(error: Exception) -> str:
    return f"The engine failed: {type(error).__name__}: {error!s:.300}"


def _settle(claim: Claim, place: Station, work: Work, word: str) -> str:
    """What an attempt without a video leaves behind is removed."""
    if word == "cancel":
        place.ledger.fail(claim, "cancelled", CANCELLED, retry=False)
    elif word == "leave":
        place.ledger.hand_back(claim)
    work.clear()
    if word == "gone":
        place.blobs.delete(f"videos/{claim.job_id}")
        place.ledger.bury(claim.job_id)
    return "failed" if word == "ok" else word


def _make(claim: Claim, place: Station, engine: "Engine", work: Work) -> dict[str, Any]:
    """The video and its pictures, stored; returns the result as the record will hold it."""
    spec = Spec.from_json(claim.request["spec"])
    references = [fetch(place, one) for one in claim.request["references"]]
    work.begin(engine.digest)
    video = _generate(claim.job_id, place, engine, work, spec, references)
    work.enter("store")
    result = work.keep(video, references)
    work.enter("commit")
    if video.made is not None:
        result["forwards"] = {"asked": video.made.asked, "computed": video.made.computed}
    return {**result, "timings": work.timings, "attempt": claim.attempt}


def _generate(
    job_id: str,
    place: Station,
    engine: "Engine",
    work: Work,
    spec: Spec,
    references: Sequence[Reference],
) -> "Video":
    """The video, from encodings of another worker's where this one has no encoders."""
    if place.runtime.encoders != "remote":
        return engine.generate(spec, references, work.on_progress)
    try:
        encoded = encodings_of(job_id, place, engine.digest, work.hear)
        return engine.generate(spec, references, work.on_progress, encoded=encoded)
    finally:
        forget(job_id, place)


def _commit(claim: Claim, place: Station, result: dict[str, Any]) -> str:
    """A finished video is worth waiting for Redis to come back."""
    return patiently(lambda: place.ledger.commit(claim, result), place.leaving)


def patiently(
    act: Callable[[], str], leaving: threading.Event, wait: Callable[[float], None] = time.sleep
) -> str:
    """Try until the ledger answers, with growing pauses, about a minute in all.

    Raises:
        LedgerDown: it never did.
    """
    for attempt in range(COMMIT_TRIES):
        try:
            return act()
        except LedgerDown:
            if attempt == COMMIT_TRIES - 1 or leaving.is_set():
                raise
            wait(min(0.5 * 2**attempt, 15))
    raise AssertionError("unreachable: the loop returns or raises")
