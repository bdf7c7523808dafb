"""The task of a worker that only encodes, and how a worker that only denoises waits for it.

    generate worker                  Redis                encode worker
    claim ─ no encodings yet ─▶ doorbell (queue of its own) ─▶ begin ─ encode ─▶ blob
          ◀──────────────────── where the blob lies ◀───────── offer

The reaper rings for the jobs at the head of the queue too, so that encodings are usually there
before a card is free. Encoding twice does no harm: the same request gives the same encodings.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import shared_task

from engine.errors import CheckpointError, EncodingError, SpecError, TroupeError
from engine.spec import Spec
from service import blobs as store
from service.doorbell import ENCODE_TASK
from service.errors import BlobError, BlobMissing, LedgerDown, NotFound
from service.exchange import Offer
from service.logs import about
from service.refs import home, tenant_of
from workers import golden
from workers.boot import Station, station
from workers.work import fetch

if TYPE_CHECKING:
    from engine.encoder import Encoder
    from engine.encodings import Encoded

log = logging.getLogger(__name__)

# As long as a worker may take to come up with its models and to see to those before.
WAIT_S = 900.0
POLLS_S = (0.05, 0.5)  # the first pause, and the longest


@shared_task(name=ENCODE_TASK)  # type: ignore[untyped-decorator]
def encode(ref: str) -> None:
    """Answer one doorbell."""
    place = station()
    with about(ref):
        log.info("%s: %s", ref, answer(ref, place))


def answer(ref: str, place: Station) -> str:
    """Encode a job if that is still to be done. Returns how that ended, for the log."""
    if place.encoder is None:
        return "not taken: this worker has no encoders"
    try:
        return _answer(ref, place, place.encoder)
    except LedgerDown as error:
        return f"not taken: {error}"


def _answer(ref: str, place: Station, encoder: "Encoder") -> str:
    job = _wanted(ref, place)
    if job is None:
        forget(ref, place)  # perhaps an encoder that died left something
        return "gone"
    if not place.exchange.begin(ref):
        return "nothing to do"
    place.take(ref)
    try:
        with _held(ref, place):
            offer = _encode(job, place, encoder)
        place.exchange.offer(ref, offer)
        if _wanted(ref, place) is None:
            forget(ref, place)
    except (LedgerDown, BlobError) as error:
        # Unless it is known that somebody wants them, no encodings stay: nobody would look again.
        forget(ref, place)
        return f"not handed over: {error}"
    finally:
        place.take("")
    return "refused" if offer.field else offer.error or "encoded"


@dataclass(frozen=True)
class Asked:
    """What is to be encoded: a job's request, or the small one that models are tried out with."""

    ref: str
    request: Mapping[str, Any]


def _wanted(ref: str, place: Station) -> Asked | None:
    """Of a job, if it has not ended."""
    if tenant_of(ref) == golden.TENANT:
        assert place.encoder is not None
        return Asked(ref, golden.request(place.encoder.preset))
    try:
        job = place.ledger.read(ref)
    except NotFound:
        return None
    return None if job.ended else Asked(ref, job.request)


@contextmanager
def _held(ref: str, place: Station) -> Iterator[None]:
    """Within it others hear that somebody is at it."""
    done = threading.Event()

    def hold() -> None:
        while not done.wait(place.settings.lease_s / 3):
            try:
                place.exchange.hold(ref)
            except LedgerDown:
                continue

    thread = threading.Thread(target=hold, name="encoding", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _encode(job: Asked, place: Station, encoder: "Encoder") -> Offer:
    from engine.encoder import to_bytes

    try:
        spec = Spec.from_json(job.request["spec"])
        references = [fetch(place, one) for one in job.request["references"]]
        data = to_bytes(encoder.encode(spec, references, tenant_of(job.ref), job.ref))
        blob = place.blobs.put(_prefix(job.ref), data, ".safetensors")
    except SpecError as error:
        return Offer(error=error.message, field=error.field)
    except BlobError:
        raise  # another worker may have a store
    except TroupeError as error:
        return Offer(error=str(error))
    except Exception as error:  # a bug, or too little memory: said to who waits, not hidden
        log.exception("%s could not be encoded", job.ref)
        return Offer(error=f"{type(error).__name__}: {error!s:.300}")
    return Offer(key=blob.key, digest=encoder.digest)


def forget(ref: str, place: Station) -> None:
    """Remove a job's encodings, and word of them. What cannot be removed now goes with the job."""
    for remove in (
        lambda: place.blobs.delete(_prefix(ref)),
        lambda: place.exchange.forget(ref),
    ):
        try:
            remove()
        except (LedgerDown, BlobError) as error:
            log.warning("%s: encodings left behind: %s", ref, error)


def _prefix(ref: str) -> str:
    return f"{home(ref)}/encodings"


def encodings_of(
    ref: str, place: Station, digest: str, tell: Callable[[], None], limit_s: float = WAIT_S
) -> "Encoded":
    """A job's encodings, made by a worker that encodes; rings for one and waits.

    Args:
        digest: of the weights that must have made them.
        tell: called while it waits; what it raises ends the waiting and comes out of here.

    Raises:
        SpecError: the request cannot be encoded.
        EncodingError: no worker has made them in `limit_s` seconds, or one failed.
    """
    end, pause, why = time.monotonic() + limit_s, POLLS_S[0], ""
    while True:
        tell()
        try:
            found = _look(ref, place, digest)
        except LedgerDown:
            found = ""  # the lease may outlive the gap
        if not isinstance(found, str):
            return found
        why = found or why
        if time.monotonic() > end:
            told = why or "no worker that encodes (TROUPE_RUNTIME=encoders=only) has taken it"
            raise EncodingError(f"No encodings after {limit_s:g} s: {told}.")
        time.sleep(pause)
        pause = min(2 * pause, POLLS_S[1])


def _look(ref: str, place: Station, digest: str) -> "Encoded | str":
    """What is offered, or why it cannot be used; then somebody is asked to make it (again)."""
    offer, why = place.exchange.find(ref), ""
    if offer is not None:
        found = _taken(ref, place, offer, digest)
        if not isinstance(found, str):
            return found
        log.warning("%s: %s", ref, found)
        place.exchange.forget(ref)
        why = found
    others = place.other_encoders(digest)
    if others:
        return f"workers that encode have other weights ({others}, not {digest})"
    if place.exchange.may_ring(ref):
        place.ring_encoder(ref)
    return why


def _taken(ref: str, place: Station, offer: Offer, digest: str) -> "Encoded | str":
    from engine.encoder import from_bytes

    if offer.field:
        place.exchange.forget(ref)
        raise SpecError(offer.field, offer.error)
    if offer.error:
        place.exchange.forget(ref)
        raise EncodingError(f"The worker that encodes failed: {offer.error}")
    if offer.digest != digest:
        return f"a worker that encodes has other weights ({offer.digest}, not {digest})"
    try:
        return from_bytes(store.get(place.blobs, offer.key))
    except (BlobMissing, CheckpointError) as error:
        return str(error)
