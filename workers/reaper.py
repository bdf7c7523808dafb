"""`python -m workers.reaper`: puts right what a death left behind. Outside Celery, on purpose.

Every round: jobs whose lease ran out, or that do not get on, go back into the queue or are given
up; the next jobs get a new doorbell while workers stand idle; quota follows what jobs took; what
was kept for long enough is deleted; the files of deleted jobs are swept once no worker can still be
writing them. Every step is atomic in the ledger, so several reapers do no harm.
"""

import logging
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from service.audit import Audit
from service.blobs import Blobs, open_blobs
from service.doorbell import Doorbell, Ring
from service.errors import BlobError, LedgerDown, NotFound
from service.exchange import Exchange
from service.ledger import Ledger, connect
from service.limits import Limits
from service.logs import named, set_up
from service.refs import home, tenant_of
from service.roster import Roster, WorkerState
from workers.settings import Settings

COMPACT_EVERY_S = 3600.0

log = logging.getLogger(__name__)


class Reaper:
    """One round after the other. Raises nothing: without Redis or blobs, the next round tries."""

    def __init__(
        self,
        ledger: Ledger,
        roster: Roster,
        blobs: Blobs,
        ring: Ring,
        settings: Settings,
        exchange: Exchange,
        ring_encoder: Ring,
        limits: Limits,
        audit: Audit,
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._blobs = blobs
        self._ring = ring
        self._exchange = exchange
        self._ring_encoder = ring_encoder
        self._limits = limits
        self._audit = audit
        self._ring_after_s = settings.ring_after_s
        self._grave_age_s = 2 * settings.lease_s
        self._retention_s = settings.retention_h * 3600
        self._compacted, self._compacted_at = -1, time.monotonic() - COMPACT_EVERY_S

    def round(self) -> None:
        """One look at everything."""
        try:
            again, failed = self._ledger.reap()
            for ref in again:
                log.warning("%s lost its worker, queued again", ref, extra=named(ref))
            for ref in failed:
                log.error("%s given up", ref, extra=named(ref))
                self._clear(ref)
            present = self._roster.present()
            self._ring_for_idle(present)
            self._ring_ahead(present)
            self._limits.sweep()
            self._expire()
            self._sweep()
            self._compact()
        except LedgerDown:
            log.warning("no ledger; trying again")

    def _ring_for_idle(self, present: Sequence[WorkerState]) -> None:
        idle = sum(worker.state == "idle" for worker in present if worker.makes_videos)
        if idle:
            for ref in self._ledger.due(idle, self._ring_after_s):
                self._ring(ref)

    def _ring_ahead(self, present: Sequence[WorkerState]) -> None:
        """As many jobs are encoded ahead as workers will need it: no card waits, and the queue's
        encodings do not pile up."""
        idle = {w.encoders for w in present if not w.makes_videos and w.state == "idle"}
        in_need = sum(w.role == "denoise" and w.encoders in idle for w in present)
        for ref in self._ledger.head(in_need):
            if self._exchange.may_ring(ref):
                self._ring_encoder(ref)

    def _clear(self, ref: str) -> None:
        """A job that was given up goes on from nowhere. What is left now goes with the job."""
        for part in ("state", "kept"):
            with suppress(BlobError):
                self._blobs.delete(f"{home(ref)}/{part}")

    def _expire(self) -> None:
        """What was kept for long enough is deleted as if its owner had asked for it."""
        for ref in self._ledger.expired(self._retention_s):
            with suppress(NotFound):  # another reaper was faster
                self._ledger.delete(ref)
                self._audit.append(tenant_of(ref), "retention", "video.deleted", ref)

    def _sweep(self) -> None:
        for ref in self._ledger.graves(self._grave_age_s):
            try:
                self._blobs.delete(home(ref))
            except BlobError as error:
                log.warning("files of %s not swept yet: %s", ref, error)
                continue
            self._ledger.bury(ref)


    def _compact(self) -> None:
        """What was deleted still stands in the ledger's file on disk, for an hour at most."""
        deletions, now = self._ledger.deletions(), time.monotonic()
        if deletions != self._compacted and now - self._compacted_at >= COMPACT_EVERY_S:
            self._ledger.compact()
            self._compacted, self._compacted_at = deletions, now


def main() -> None:
    """Entry point. Ends on SIGTERM or SIGINT after the round in hand."""
    set_up()
    settings = Settings()
    client = connect(settings)
    doorbell = Doorbell(settings)
    reaper = Reaper(
        Ledger(client, settings),
        Roster(client, settings),
        open_blobs(settings),
        doorbell.ring,
        settings,
        Exchange(client, settings),
        doorbell.ring_encoder,
        Limits(client, settings),
        Audit(client, settings),
    )
    stop = threading.Event()

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    while not stop.wait(settings.reap_every_s):
        reaper.round()


if __name__ == "__main__":
    main()
