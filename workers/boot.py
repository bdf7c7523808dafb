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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from celery.signals import worker_process_init, worker_process_shutdown, worker_shutting_down

from engine.errors import TroupeError
from engine.runtime import STANDARD, Runtime
from service.blobs import open_blobs
from service.doorbell import Doorbell
from service.errors import ServiceError
from service.exchange import Exchange
from service.ledger import Ledger, connect
from service.roster import Roster, WorkerState
from workers.settings import Settings

if TYPE_CHECKING:
    from engine.encoder import Encoder
    from engine.pipeline import Engine

log = logging.getLogger(__name__)
# Set in the parent, heard in the child: Celery tells a child nothing while it has a job in hand.
SHUTTING_DOWN = multiprocessing.Event()
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


class Station:
    """A worker process's place: its clients, its engine or the reason for having none."""

    def __init__(self, settings: Settings) -> None:
        client = connect(settings)
        self.settings = settings
        self.runtime = Runtime.parse(settings.runtime)
        self.ledger = Ledger(client, settings)
        self.exchange = Exchange(client, settings)
        self.blobs = open_blobs(settings)
        self.engine: Engine | None = None
        self.encoder: Encoder | None = None  # in place of an engine
        self.leaving = threading.Event()  # SIGTERM came: hand the job in hand back
        self._roster = Roster(client, settings)
        self._doorbell = Doorbell(settings)
        self._id = f"{socket.gethostname()}:{os.getpid()}"
        self._message = ""
        self._job = ""
        self._tried = 0.0
        self._closed = threading.Event()
        self._telling = threading.Lock()

    def open(self) -> None:
        """Announce, and go on announcing, then load the engine."""
        self.announce()
        threading.Thread(target=self._announce_for_ever, name="announce", daemon=True).start()
        self.load()

    def load(self) -> None:
        """Load the checkpoint, or keep the reason why it cannot be."""
        self._tried = time.monotonic()
        folder = self.settings.model_dir
        try:
            found: Any = load_engine(folder, self.settings.encodings_dir, self.runtime)
            if self.runtime.encoders == "only":
                self.encoder = found
            else:
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

    @property
    def state(self) -> WorkerState:
        """What is announced."""
        model = self.engine or self.encoder
        if model is None:
            word = "unhealthy" if self._message else "starting"
            message = self._message or "loading its checkpoint"
            return WorkerState(self._id, word, message, role=self.role)
        return WorkerState(
            self._id,
            "busy" if self._job else "idle",
            preset=model.preset.name,
            digest=model.digest,
            job=self._job,
            role=self.role,
            tiers=self.engine.tiers if self.engine else (),
        )

    @property
    def role(self) -> str:
        """See `service.roster.WorkerState`."""
        return ROLES[self.runtime.encoders]

    def other_encoders(self, digest: str) -> str:
        """Digests of the workers that encode, where there are some and none has these weights."""
        found = {w.digest for w in self._roster.present() if not w.makes_videos and w.healthy}
        return "" if digest in found else ", ".join(sorted(found))

    def ring_encoder(self, job_id: str) -> None:
        """Ask a worker that encodes to see to a job."""
        self._doorbell.ring_encoder(job_id)

    def take(self, job_id: str) -> None:
        """Announce the job in hand; an empty id: none."""
        self._job = job_id
        self.announce()

    def announce(self) -> None:
        """Tell now; without Redis, the next round will."""
        try:
            with self._telling:  # or an older word could arrive after a newer one
                self._roster.announce(self.state)
        except ServiceError as error:
            log.warning("not announced: %s", error)

    def leave(self) -> None:
        """Stop announcing and vanish from the roster."""
        self._closed.set()
        try:
            self._roster.leave(self._id)
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

    def _announce_for_ever(self) -> None:
        while not self._closed.wait(self.settings.lease_s / 3):
            self.announce()
            retry = time.monotonic() - self._tried > self.settings.reload_after_s
            if self._message and retry:
                self.load()


@cache
def station() -> Station:
    """This process's station. First called in the child, so no connection crosses the fork."""
    return Station(Settings())


@worker_shutting_down.connect  # type: ignore[untyped-decorator]
def tell_child(**_: object) -> None:
    """Celery's parent was asked to end: who only waits in the child need not be waited for."""
    SHUTTING_DOWN.set()


@worker_process_init.connect  # type: ignore[untyped-decorator]
def open_station(**_: object) -> None:
    """Celery starts a child."""
    station().open()


@worker_process_shutdown.connect  # type: ignore[untyped-decorator]
def close_station(**_: object) -> None:
    """Celery ends a child in good order."""
    station().leave()
