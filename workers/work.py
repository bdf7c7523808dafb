"""One job in hand: its lease is kept alive, its progress told, its stop heard, its files kept."""

import io
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from engine.errors import Cancelled
from engine.spec import Reference
from service import blobs as store
from service.errors import BlobError, LedgerDown
from service.jobs import Claim
from service.refs import home
from service.traces import Stages
from workers import media
from workers.boot import SHUTTING_DOWN, Station
from workers.pace import Pace, Telling

if TYPE_CHECKING:
    from engine.pipeline import Progress
    from engine.video import Video
    from workers.media import Seal

log = logging.getLogger(__name__)
T = TypeVar("T")

# Share of a job's time at which each stage begins, and ends.
SPANS = {"encode": (0.0, 0.05), "denoise": (0.05, 0.9), "decode": (0.9, 0.97)}
STORE_AT = 0.97
DEAF_S = 2.0  # a ledger that does not answer costs a timeout at each question


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
        self._home = home(claim.ref)
        self._prefix = f"{self._home}/{claim.token}"
        self._pace = Pace()
        self._telling = Telling()
        self._deaf_until = 0.0
        self._saves: list[str] = []  # prefixes of states that are still there
        self._candidate, self._wanted, self._lasting = 0, 1, False
        self._stage = ""
        self._spans = Stages()
        self._since = time.monotonic()
        self._done, self._wake = threading.Event(), threading.Event()
        self._sending = threading.Lock()  # what is told arrives in the order in which it was said
        self._later: dict[str, str | int | float] = {}
        self._adding = threading.Lock()  # to what follows later
        self._thread: threading.Thread | None = None

    @contextmanager
    def leased(self) -> Iterator[None]:
        """Heartbeats from a thread, for stages that last longer than a lease. It tells the progress
        too: the work waits for no sync of the ledger's file."""
        self._thread = threading.Thread(target=self._keep_lease, name="lease", daemon=True)
        self._thread.start()
        self.enter("fetch")
        try:
            yield
        finally:
            self._spans.end()
            self._done.set()
            self._wake.set()
            self._thread.join()
            self._thread = None

    def begin(self, digest: str, made: int, wanted: int, lasting: bool = False) -> None:
        """The job's first heartbeat: which weights make it, how many candidates there are already,
        and how many there will be at least. lasting: what is made outlives this attempt."""
        self._candidate, self._wanted, self._lasting = made, wanted, lasting
        self._beat(0.0, stage="encode", digest=digest, steps=0, step=0)
        self.enter("encode")

    def enter(self, stage: str) -> None:
        """Close the clock of one stage and start the next one's."""
        now = time.monotonic()
        if self._stage:
            name = f"{self._stage}_s"
            self.timings[name] = round(self.timings.get(name, 0.0) + now - self._since, 3)
        self._stage, self._since = stage, now
        self._spans.enter(stage)
        if stage == "store":
            self._soon(STORE_AT, stage=stage)

    def note(self, record: str, made: int, steps: int) -> None:
        """A candidate is finished and another one follows: no worker makes it again."""
        heard = self._beat(STORE_AT, saved=record, saved_step=made * steps)
        self._candidate = made
        if heard:  # else the ledger still leads to the last state
            self._drop_saves(keep=0)

    def save(
        self,
        data: Callable[[], bytes],
        record: Callable[[str], str],
        made: int,
        done: int,
        steps: int,
    ) -> None:
        """Keep the state of a run, if its time has come; a store that fails must not cost the job.

        Args:
            data: makes its bytes. record: makes the record's field of the blob's key.
            made: candidates before this one; done: of this one's steps.
        """
        leaving = self._place.must_leave  # then it is the last chance
        if not leaving and not self._pace.due(done, steps):
            return
        begin = time.monotonic()
        prefix = f"{self._home}/state/{self._claim.token}-{made}-{done}"
        try:
            blob = self._place.blobs.put(prefix, data(), ".safetensors")
            self._saves.append(prefix)
            # Where the ledger did not hear of it, it still leads to the one before.
            if self._tell(saved=record(blob.key), saved_step=made * steps + done):
                self._drop_saves(keep=1)
        except BlobError as error:
            log.warning("%s: state not kept: %s", self._claim.ref, error)
        self._pace.saved(time.monotonic() - begin)

    def _drop_saves(self, keep: int) -> None:
        while len(self._saves) > keep:
            self._remove(self._saves.pop(0))

    def _remove(self, prefix: str) -> None:
        """What cannot be removed now goes with the job."""
        try:
            self._place.blobs.delete(prefix)
        except BlobError as error:
            log.warning("%s: left behind: %s", self._claim.ref, error)

    def hear(self) -> None:
        """Between steps, while something is waited for. Raises Cancelled, as `on_progress` does,
        and also where the worker is about to end: nothing is lost yet."""
        if SHUTTING_DOWN.is_set():
            self._stop("leave")
        self._heed()
        if self.stopped:
            self._stop(self.stopped)
        self._tell()

    def patiently(self, act: Callable[[], T]) -> T:
        """What act() returns; while the store refuses, it is waited for. The job's lease is kept,
        and the watchdog sees that it is not the work that stands still.

        Raises:
            Cancelled: as `hear`.
            BlobError: as `Shelf.patiently`.
        """
        return self._place.shelf.patiently(act, self.hear)

    def on_progress(self, progress: "Progress") -> None:
        """The engine's callback, at every step. Each asks whether to stop; what the record shows
        follows, at most half a second and a sync of the ledger's file behind.

        Raises:
            Cancelled: stop now; `stopped` holds the reason.
        """
        self._heed()
        fresh = progress.stage != self._stage or progress.step <= 1
        if not (fresh or progress.preview or self._telling.due()):
            self._ask()
            return
        if progress.stage != self._stage:
            self.enter(progress.stage)
        share = progress.step / max(progress.num_steps, 1)
        low, high = SPANS[progress.stage]
        told: dict[str, str | int | float] = {"stage": progress.stage}
        if progress.stage == "denoise":
            told |= {"step": progress.step, "steps": progress.num_steps}
            told |= self._preview(progress)
        self._soon(low + (high - low) * share, **told)

    def keep(
        self, video: "Video", references: Sequence[Reference], seal: "Seal | None" = None
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Store what was made: the keys of its files, and what is told of its origin.

        A candidate of several outlives the attempt, because the next worker counts on it. A store
        that refuses is waited for, as `patiently` does.
        """
        made = self.patiently(lambda: media.render(video, references, seal))
        kept = f"{self._home}/kept/{self._claim.token}"
        prefix = kept if self._lasting else f"{self._prefix}/out"
        keys = {
            name: self._place.shelf.put(prefix, data, suffix, self.hear).key
            for name, (data, suffix) in made.files().items()
        }
        self._remove(f"{self._prefix}/preview")
        return keys, dict(made.told)

    def settle(self) -> None:
        """The job has ended: nobody will go on from its states.

        One that a worker wrote after it had lost the job goes with the job.
        """
        self._remove(f"{self._home}/state")

    def discard(self) -> None:
        """The job has ended without a video: nor are its candidates wanted."""
        self.settle()
        self._remove(f"{self._home}/kept")

    def clear(self) -> None:
        """Remove this attempt's files; the reaper's sweep will try again where that fails."""
        self._remove(self._prefix)

    def _heed(self) -> None:
        if self._place.must_leave:
            self._stop("leave")

    def _preview(self, progress: "Progress") -> dict[str, str | int | float]:
        """The engine's previews are kept; a store that fails here must not cost the job."""
        if progress.preview is None:
            return {}
        try:
            blob = self._place.blobs.put(f"{self._prefix}/preview", progress.preview, ".jpg")
        except BlobError as error:
            log.warning("%s: preview not kept: %s", self._claim.ref, error)
            return {}
        return {"preview": blob.key}

    def _beat(self, fraction: float, **fields: str | int | float) -> bool:
        """`fraction` of this candidate. As `_tell`."""
        if self.stopped:
            self._stop(self.stopped)
        return self._tell(fraction=self._overall(fraction), **fields)

    def _soon(self, fraction: float, **fields: str | int | float) -> None:
        """As `_beat`, from the thread that keeps the lease. Raises Cancelled."""
        if self._thread is None:
            self._beat(fraction, **fields)
            return
        with self._adding:
            self._later |= {"fraction": self._overall(fraction), **fields}
        self._wake.set()
        self._ask()

    def _overall(self, fraction: float) -> float:
        """Of the job, which is less where other candidates follow."""
        done = self._candidate + fraction
        return round(min(done / max(self._wanted, self._candidate + 1), 1.0), 4)

    def _tell(self, **fields: str | int | float) -> bool:
        """False where the ledger does not answer. Raises Cancelled."""
        self._place.move()
        try:
            word = self._sent(True, fields)
        except LedgerDown:
            return False  # the lease may outlive the gap; if not, the token will tell
        if word != "ok":
            self._stop(word)
        return True

    def _sent(self, moved: bool, fields: dict[str, str | int | float]) -> str:
        """The ledger's word on a heartbeat with these fields and with those that were to follow."""
        with self._sending:
            with self._adding:
                later, self._later = self._later, {}
            fields, moved = later | fields, moved or bool(later)
            percent = min(int(100 * float(fields.get("fraction", 0))), 99)
            with self._telling.timed():
                return self._place.ledger.beat(self._claim, percent, moved, **fields)

    def _ask(self) -> None:
        """As `_tell`, with nothing to tell."""
        if self.stopped:
            self._stop(self.stopped)
        self._place.move()
        if time.monotonic() < self._deaf_until:
            return
        try:
            word = self._place.ledger.word(self._claim)
        except LedgerDown:
            self._deaf_until = time.monotonic() + DEAF_S
            return
        if word != "ok":
            self._stop(word)

    def _stop(self, word: str) -> None:
        self.stopped = word
        raise Cancelled(word)

    def _keep_lease(self) -> None:
        while True:
            self._wake.wait(self._place.settings.lease_s / 3)
            self._wake.clear()
            if self._done.is_set():
                return
            try:
                word = self._sent(False, {})
            except LedgerDown:
                continue
            if word != "ok":
                self.stopped = word  # heard at the engine's next step
                if word == "stale" and not self._done.wait(self._place.settings.stall_s):
                    self._give_up()
                return

    def _give_up(self) -> None:
        """Another worker has the job, and this one hangs where no step comes: only its end frees
        the card. Celery starts a new child."""
        log.error("%s: hangs since its lease was lost; this process ends", self._claim.ref)
        os._exit(1)
