"""One job in hand: its lease is kept alive, its progress told, its stop heard, its files kept."""

import io
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from PIL import Image

from engine.errors import Cancelled
from engine.spec import Reference
from service import blobs as store
from service.errors import BlobError, LedgerDown
from service.ledger import Claim
from workers import media
from workers.boot import SHUTTING_DOWN, Station

if TYPE_CHECKING:
    from engine.pipeline import Progress
    from engine.video import Video

log = logging.getLogger(__name__)

# Share of a job's time at which each stage begins, and ends.
SPANS = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 0.97)}
STORE_AT = 0.97


def fetch(place: Station, one: dict[str, str]) -> Reference:
    """A reference as the gateway stored it."""
    data = store.get(place.blobs, one["key"])
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return Reference.from_image(one["name"], image)


class Work:
    """Between a claim and its end. `stopped` says why the work was cut short."""

    def __init__(self, claim: Claim, place: Station) -> None:
        self.stopped = ""
        self.timings: dict[str, float] = {}
        self._claim = claim
        self._place = place
        self._prefix = f"videos/{claim.job_id}/{claim.token}"
        self._stage = ""
        self._since = time.monotonic()
        self._done = threading.Event()

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Heartbeats from a thread, for stages that last longer than a lease."""
        thread = threading.Thread(target=self._keep_lease, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def begin(self, digest: str) -> None:
        """The job's first heartbeat: which weights make it."""
        self._beat(0.0, stage="encode", digest=digest, steps=0, step=0)
        self.enter("encode")

    def enter(self, stage: str) -> None:
        """Close the clock of one stage and start the next one's."""
        now = time.monotonic()
        if self._stage:
            name = f"{self._stage}_s"
            self.timings[name] = round(self.timings.get(name, 0.0) + now - self._since, 3)
        self._stage, self._since = stage, now
        if stage == "store":
            self._beat(STORE_AT, stage=stage)

    def hear(self) -> None:
        """Between steps, while something is waited for. Raises Cancelled, as `on_progress` does,
        and also where the worker is about to end: nothing is lost yet."""
        if SHUTTING_DOWN.is_set():
            self._stop("leave")
        self._heed()
        self._beat(0.0)

    def on_progress(self, progress: "Progress") -> None:
        """The engine's callback, at every step.

        Raises:
            Cancelled: stop now; `stopped` holds the reason.
        """
        self._heed()
        if progress.stage != self._stage:
            self.enter(progress.stage)
        share = progress.step / max(progress.num_steps, 1)
        low, high = SPANS[progress.stage]
        told: dict[str, str | int | float] = {"stage": progress.stage}
        if progress.stage == "denoise":
            told |= {"step": progress.step, "steps": progress.num_steps}
            told |= self._preview(progress)
        self._beat(low + (high - low) * share, **told)

    def keep(self, video: "Video", references: Sequence[Reference]) -> dict[str, Any]:
        """Store what was made, under this attempt's own prefix; returns the keys."""
        made = media.render(video, references)
        keys = {
            name: self._place.blobs.put(f"{self._prefix}/out", data, suffix).key
            for name, (data, suffix) in made.files().items()
        }
        self._place.blobs.delete(f"{self._prefix}/preview")
        return keys

    def clear(self) -> None:
        """Remove this attempt's files; the reaper's sweep will try again where that fails."""
        try:
            self._place.blobs.delete(self._prefix)
        except BlobError as error:
            log.warning("%s: files of attempt left behind: %s", self._claim.job_id, error)

    def _heed(self) -> None:
        if self._place.leaving.is_set():
            self._stop("leave")

    def _preview(self, progress: "Progress") -> dict[str, str | int | float]:
        """The engine's previews are kept; a store that fails here must not cost the job."""
        if progress.preview is None:
            return {}
        try:
            blob = self._place.blobs.put(f"{self._prefix}/preview", progress.preview, ".jpg")
        except BlobError as error:
            log.warning("%s: preview not kept: %s", self._claim.job_id, error)
            return {}
        return {"preview": blob.key}

    def _beat(self, fraction: float, **fields: str | int | float) -> None:
        if self.stopped:
            self._stop(self.stopped)
        percent = min(int(100 * fraction), 99)
        try:
            word = self._place.ledger.beat(
                self._claim, percent, fraction=round(fraction, 4), **fields
            )
        except LedgerDown:
            return  # the lease may outlive the gap; if not, the token will tell
        if word != "ok":
            self._stop(word)

    def _stop(self, word: str) -> None:
        self.stopped = word
        raise Cancelled(word)

    def _keep_lease(self) -> None:
        while not self._done.wait(self._place.settings.lease_s / 3):
            try:
                word = self._place.ledger.beat(self._claim)
            except LedgerDown:
                continue
            if word != "ok":
                self.stopped = word  # heard at the engine's next step
                return
