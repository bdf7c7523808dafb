"""One worker process: its engine, loaded once in the child, and what it tells the world.

A checkpoint that cannot be used (a flipped byte, a missing file) does not end the process and does
not eat jobs: the worker announces itself as unhealthy with the reason, jobs stay queued, /readyz
says why, and the folder is tried again every few seconds, so that mending it is enough.
"""

import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

from engine.errors import BackendError, SpecError, TroupeError
from engine.registry import Address
from engine.runtime import STANDARD, Runtime
from engine.spec import Spec
from service import traces
from service.blobs import open_blobs
from service.cost import FLOPS_PER_S
from service.doorbell import Doorbell
from service.errors import ServiceError
from service.exchange import Exchange
from service.fleet import Fleet
from service.ledger import Ledger, connect
from service.limits import Limits
from service.roster import Roster, WorkerState
from workers import alive
from workers.golden import Case
from workers.purge import LOOK_EVERY_S, Purge
from workers.reload import Reload
from workers.settings import Settings
from workers.shelf import Shelf

if TYPE_CHECKING:
    from engine.cache import EncodingCache
    from engine.encoder import Encoder
    from engine.folders import Heed
    from engine.likeness import Judge
    from engine.pipeline import Engine
    from workers.media import Seal
    from workers.provenance import Provenance

log = logging.getLogger(__name__)
# Set in the parent, heard in the child: Celery tells a child nothing while it has a job in hand.
SHUTTING_DOWN = multiprocessing.Event()
# When, by the monotonic clock, which all processes of a machine share.
SHUT_AT = multiprocessing.Value("d", 0.0, lock=False)
# A job that lasts longer is handed back. Orchestrators kill after ten seconds or more, and Celery
# takes three to five of them for its own end.
DRAIN_S = 3.0
ROLES = {"local": "generate", "remote": "denoise", "only": "encode"}  # by Runtime.encoders


def load_engine(
    folder: Path, encodings: Path | None = None, runtime: Runtime = STANDARD
) -> "Engine | Encoder":
    """The engine, or its encoders where the runtime says only those, verified byte by byte.

    torch is imported here, in the child, and only here.

    Args:
        encodings: where encodings are kept on disk; None keeps them in memory only.

    Raises:
        CheckpointError: the folder is incomplete, altered or of another shape.
        BackendError: this machine cannot do what the runtime asks.
    """
    from engine.cache import EncodingCache
    from engine.encoder import Encoder
    from engine.pipeline import Engine

    kind = Encoder if runtime.encoders == "only" else Engine
    return kind.load(folder, EncodingCache(folder=encodings), runtime)


def load_judge(folder: Path) -> "Judge | None":
    """See `engine.likeness.load_judge`."""
    from engine import likeness

    return likeness.load_judge(folder)


class Station:
    """A worker process's place: its clients, its engine or the reason for having none."""

    def __init__(self, settings: Settings) -> None:
        client = connect(settings)
        self.id = f"{socket.gethostname()}:{os.getpid()}"
        self.settings = settings
        self.runtime = Runtime.parse(settings.runtime)
        self.ledger = Ledger(client, settings)
        self.exchange = Exchange(client, settings)
        self.blobs = open_blobs(settings)
        self.engine: Engine | None = None
        self.encoder: Encoder | None = None  # in place of an engine
        self.judge: Judge | None = None  # who tells likeness, where the checkpoint brings one
        self.leaving = threading.Event()  # SIGTERM came: hand the job in hand back
        self._roster = Roster(client, settings)
        self._doorbell = Doorbell(settings)
        self._first = os.getppid()  # the process that an orchestrator knows
        self._message = ""
        self._speed: tuple[str, float] | None = None  # of this machine, until it was told
        self._job = ""
        self._tried = 0.0
        self._moved: float | None = None  # both as in workers.alive.Pulse
        self._wanted: float | None = None
        self._closed = threading.Event()
        self._telling = threading.Lock()
        self._purge = Purge(self.ledger, lambda: self.cache)
        self._limits = Limits(client, settings)
        self.shelf = Shelf(self.blobs, self.announce)
        self.using = threading.Lock()  # of the engine: a job, or an exchange of its weights
        address = Address.parse(str(settings.model_dir))
        self.reload: Reload | None = None
        if address is not None:
            fleet, cache = Fleet(client, settings), settings.model_cache
            self.reload = Reload(address, cache, fleet, self.id, Case(self))

    def open(self) -> None:
        """Announce, and go on announcing, then load the engine."""
        threading.Thread(target=self._pulse_for_ever, name="pulse", daemon=True).start()
        self.announce()
        threading.Thread(target=self._announce_for_ever, name="announce", daemon=True).start()
        threading.Thread(target=self._purge_for_ever, name="purge", daemon=True).start()
        threading.Thread(target=self._look_for_ever, name="store", daemon=True).start()
        self.load()
        if self.reload is not None:
            threading.Thread(target=self._reload_for_ever, name="reload", daemon=True).start()

    def load(self) -> None:
        """Load the checkpoint, or keep the reason why it cannot be."""
        self._tried = time.monotonic()
        folder = Path(self.settings.model_dir)
        try:
            if self.reload is not None:
                folder = self.reload.first()
            if self.runtime.encoders != "only":
                log.info("signing videos with %s", self.provenance.signer)
            found: Any = load_engine(folder, self.settings.encodings_dir, self.runtime)
            if self.runtime.encoders == "only":
                self.encoder = found
            else:
                self.judge = load_judge(folder)
                self._speed = found.preset.name, FLOPS_PER_S / found.speed()
                self.engine = found
            self._message = ""
            log.info("serving %s as %s, digest %s", folder, self.role, found.digest)
        except (TroupeError, OSError) as error:
            self._message = str(error)
            log.error("cannot serve %s: %s", folder, error)
        except Exception as error:  # a bug, or too little memory: said, not hidden
            self._message = f"{type(error).__name__}: {error}"
            log.exception("cannot serve %s", folder)
        self.announce()

    def fit(self, ref: str = "", model: str = "", heed: "Heed" = lambda: None) -> bool:
        """Load the weights that a job is for, see `workers.reload`; called with `using` held.
        False: there is no engine any more, and it is loaded anew.
        model: what the job names. heed, raises: as `Reload.fit`.
        """
        if self.engine is None:
            return False
        if self.reload is None:
            if model:
                raise SpecError("model", f"{model} is not served here")
            return True
        before = self.engine.digest
        try:
            self.reload.fit(self.engine, ref, model, heed)
        except BackendError as error:
            self.engine, self._message = None, str(error)
        if self.engine is None or self.engine.digest != before:
            self.announce()
        return self.engine is not None

    @cached_property
    def provenance(self) -> "Provenance":
        """What marks and signs this worker's videos. Raises SigningError, again at each try."""
        from workers.provenance import Provenance

        return Provenance.load(self.settings.signing_dir, self.settings.own_signing_dir)

    @property
    def state(self) -> WorkerState:
        """What is announced."""
        model = self.engine or self.encoder
        if model is None:
            word = "unhealthy" if self._message else "starting"
            message = self._message or "loading its checkpoint"
            return WorkerState(self.id, word, message, role=self.role)
        refusal = self.shelf.refusal
        return WorkerState(
            self.id,
            "unhealthy" if refusal else "busy" if self._job else "idle",
            refusal or (self.reload.message if self.reload else ""),
            preset=model.preset.name,
            digest=self.engine.digest if self.engine else "",
            job=self._job,
            role=self.role,
            tiers=self.engine.tiers if self.engine else (),
            runtime=self.settings.runtime,
            encoders=self.encoders,
            models=self.reload.named if self.reload else {},
        )

    @property
    def encoders(self) -> str:
        """What its encoders, or those whose encodings it needs, are called; empty without any."""
        model: Any = self.encoder or self.engine
        return "" if model is None else str(getattr(model, "encoder", model).digest)

    def seal(self, video_id: str, spec: Spec, subjects: Sequence[str]) -> "Seal":
        """What marks and signs a video of this worker's model. subjects: digests of pictures."""
        from workers.provenance import Origin

        assert self.engine is not None
        origin = Origin(video_id, self.engine.digest, spec.prompt, tuple(subjects))
        return partial(self.provenance.seal, origin=origin)

    @property
    def cache(self) -> "EncodingCache | None":
        """Where its encodings are kept."""
        model = self.encoder or getattr(self.engine, "encoder", None)
        return None if model is None else model.cache

    @property
    def role(self) -> str:
        """See `service.roster.WorkerState`."""
        return ROLES[self.runtime.encoders]

    def other_encoders(self, digest: str) -> str:
        """Digests of the workers that encode, where there are some and none has these weights."""
        found = {w.encoders for w in self._roster.present() if not w.makes_videos and w.healthy}
        return "" if digest in found else ", ".join(sorted(found))

    def ring_encoder(self, ref: str) -> None:
        """Ask a worker that encodes to see to a job."""
        self._doorbell.ring_encoder(ref)

    def ring_next(self, ref: str) -> None:
        """For the job after this one, if there is one: see `service.doorbell`."""
        if self._is_wanted():
            self._doorbell.ring_some([ref])

    @property
    def must_leave(self) -> bool:
        """Whether the job in hand goes back: this process was told to end, or its parent was, and
        the time to finish is over."""
        late = SHUTTING_DOWN.is_set() and time.monotonic() - SHUT_AT.value > DRAIN_S
        return late or self.leaving.is_set()

    def take(self, ref: str) -> None:
        """Announce the job in hand; an empty id: none."""
        self._job, self._wanted = ref, None
        self._moved = time.monotonic() if ref else None
        self._purge.again()
        self.announce()

    def move(self) -> None:
        """The job in hand has made a step."""
        self._moved = time.monotonic()

    def pulse(self) -> None:
        """Write what `python -m workers.alive` reads."""
        self._wanted = (self._wanted or time.monotonic()) if self._is_wanted() else None
        settings, now = self.settings, time.monotonic()
        known = (settings.lease_s, settings.stall_s, self._moved, self._wanted)
        state = self.state
        unfit = "" if state.healthy else state.message
        pulse = alive.Pulse(now, *known, alive.born_at(self._first), unfit)
        try:
            alive.tell(pulse, self._first)
        except OSError as error:
            log.warning("not told that this worker lives: %s", error)

    def _is_wanted(self) -> bool:
        """Whether a job waits that this worker could have and has not taken."""
        if self.engine is None or self._job or self.shelf.refusal:
            return False
        try:
            return self.ledger.wanted(self.engine.tiers) and not self._job
        except ServiceError:
            return False  # nobody could claim one either

    def announce(self) -> None:
        """Tell now; without Redis, the next round will."""
        try:
            with self._telling:  # or an older word could arrive after a newer one
                self._roster.announce(self.state)
                if self._speed is not None:
                    self._limits.seed(*self._speed)
                    self._speed = None
        except ServiceError as error:
            log.warning("not announced: %s", error)

    def leave(self) -> None:
        """Stop announcing and vanish from the roster."""
        self._closed.set()
        with suppress(OSError):
            alive.forget(self._first)
        try:
            self._roster.leave(self.id)
        except ServiceError as error:
            log.warning("still on the roster until it expires: %s", error)

    @contextmanager
    def heeding_sigterm(self) -> Iterator[None]:
        """Within it SIGTERM only sets `leaving`, so that the job in hand can be handed back.

        Celery's pool sends it several times in a cold shutdown, and a second one would kill.
        """
        self.leaving.clear()

        def hear(signum: int, frame: FrameType | None) -> None:
            self.leaving.set()

        before = signal.signal(signal.SIGTERM, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _pulse_for_ever(self) -> None:
        while True:
            self.pulse()
            if self._closed.wait(self.settings.lease_s / 3):
                return

    def _announce_for_ever(self) -> None:
        while not self._closed.wait(self.settings.lease_s / 3):
            self.announce()
            retry = time.monotonic() - self._tried > self.settings.reload_after_s
            if self._message and retry:
                self.load()

    def _purge_for_ever(self) -> None:
        while not self._closed.wait(LOOK_EVERY_S):
            self._purge.round()

    def _reload_for_ever(self) -> None:
        """What is new is taken over at once where no job is in hand, else before the next one."""
        assert self.reload is not None
        while not self._closed.wait(self.reload.pause_s):
            try:
                if self.encoder is not None:
                    self.reload.watch(self.encoder.digest)
                    continue
                self.reload.round(self.engine)
                if self.using.acquire(blocking=False):
                    try:
                        self.fit()
                    finally:
                        self.using.release()
            except Exception:  # a bug must not end the looking
                log.exception("channels not followed")

    def _look_for_ever(self) -> None:
        """While a job is in hand, it tries the store itself."""
        while not self._closed.wait(self.settings.lease_s / 3):
            if self.shelf.refusal and not self._job:
                self.shelf.look()


@cache
def station() -> Station:
    """This process's station. First called in the child, so no connection crosses the fork."""
    return Station(Settings())


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def tell_child(**_: object) -> None:
    """Celery's parent was asked to end: who only waits in the child need not be waited for."""
    SHUT_AT.value = time.monotonic()
    SHUTTING_DOWN.set()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def open_station(**_: object) -> None:
    """Celery starts a child."""
    traces.set_up("troupe-worker")
    station().open()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def close_station(**_: object) -> None:
    """Celery ends a child in good order."""
    station().leave()
    traces.flush()
