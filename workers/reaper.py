"""`python -m workers.reaper`: puts right what a death left behind. Outside Celery, on purpose.

Every round: jobs whose lease ran out go back into the queue, or are given up; the oldest queued
jobs get a new doorbell while workers stand idle; the files of deleted jobs are swept once no
worker can still be writing them. Every step is atomic in the ledger, so several reapers do no harm.
"""

import logging
import signal
import threading
from collections.abc import Sequence
from types import FrameType

from service.blobs import Blobs, open_blobs
from service.doorbell import Doorbell, Ring
from service.errors import BlobError, LedgerDown
from service.exchange import Exchange
from service.ledger import Ledger, connect
from service.roster import Roster, WorkerState
from workers.settings import Settings

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
    ) -> None:
        self._ledger = ledger
        self._roster = roster
        self._blobs = blobs
        self._ring = ring
        self._exchange = exchange
        self._ring_encoder = ring_encoder
        self._ring_after_s = settings.ring_after_s
        self._grave_age_s = 2 * settings.lease_s

    def round(self) -> None:
        """One look at everything."""
        try:
            again, failed = self._ledger.reap()
            for job_id in again:
                log.warning("%s lost its worker, queued again", job_id)
            for job_id in failed:
                log.error("%s given up", job_id)
            present = self._roster.present()
            self._ring_for_idle(present)
            self._ring_ahead(present)
            self._sweep()
        except LedgerDown:
            log.warning("no ledger; trying again")

    def _ring_for_idle(self, present: Sequence[WorkerState]) -> None:
        idle = sum(worker.state == "idle" for worker in present if worker.makes_videos)
        if idle:
            for job_id in self._ledger.due(idle, self._ring_after_s):
                self._ring(job_id)

    def _ring_ahead(self, present: Sequence[WorkerState]) -> None:
        """As many jobs are encoded ahead as workers will need it: no card waits, and the queue's
        encodings do not pile up."""
        idle = {w.digest for w in present if not w.makes_videos and w.state == "idle"}
        in_need = sum(w.role == "denoise" and w.digest in idle for w in present)
        for job_id in self._ledger.head(in_need):
            if self._exchange.may_ring(job_id):
                self._ring_encoder(job_id)

    def _sweep(self) -> None:
        for job_id in self._ledger.graves(self._grave_age_s):
            try:
                self._blobs.delete(f"videos/{job_id}")
            except BlobError as error:
                log.warning("files of %s not swept yet: %s", job_id, error)
                continue
            self._ledger.bury(job_id)


def main() -> None:
    """Entry point. Ends on SIGTERM or SIGINT after the round in hand."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
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
