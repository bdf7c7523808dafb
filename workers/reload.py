"""The model of a channel, followed while jobs run: fetched and checked beside them, taken over
between two.

    round   every other second: where do the channels lead? What is new is pulled, verified and
            looked at (`workers.pulls`), and the looking goes on meanwhile; nothing that serves is
            touched
    fit     with a job in hand, before its first step: the model that this job is for, by its id;
            where that is not the one loaded, weights are exchanged, and the first time tried out

A channel besides those two that leads to an adapter is a model that requests may name: all such
are followed too, and lie ready (`engine.resident`), so that from one to another takes no disk.

A model that is wrong is put in quarantine for all workers, with the reason, and the weights that
served go on. So is a canary that fails more jobs than the channel's own model, or keeps characters
less far. What is no model's fault stays with this worker: a store that does not answer is asked
again, a card without memory or weights that cannot be written over need an engine made anew.
"""

import logging
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from engine.channels import CANARY, STABLE
from engine.errors import (
    BackendError,
    CheckpointError,
    RegistryError,
    SpecError,
    TroupeError,
    UnverifiedError,
)
from engine.registry import Address, Registry, base_of, is_channel
from service.errors import LedgerDown
from service.fleet import Fleet
from service.refs import part_of
from workers.golden import Case, prepare, try_out
from workers.pulls import Pulls
from workers.ready import Ready
from workers.tidy import tidy
from workers.watch import Watch

if TYPE_CHECKING:
    from engine.folders import Heed
    from engine.pipeline import Engine
    from engine.resident import Resident

log = logging.getLogger(__name__)
LOOK_EVERY_S = 2.0
KEPT = 4  # models whose files stay verified and held: those that serve, and to roll back to


class Reload:
    """Follows one address for one worker process. worker: its id, for the operator. case: the small
    request, where the engine has no encoders."""

    def __init__(
        self, address: Address, cache: Path, fleet: Fleet, worker: str, case: Case | None = None
    ) -> None:
        self.message = ""  # why it does not serve what it should
        self._address, self._cache, self._case = address, cache, case
        self._fleet, self._worker = fleet, worker
        self._stable: Ready | None = None
        self._canary: Ready | None = None
        self._share = 0.0  # of the jobs, the canary's
        self._named: dict[str, Ready] = {}  # adapters, by their channel's name
        self._is_adapter: dict[str, bool] = {}  # by digest
        self._resident: Resident | None = None
        self._served: Ready | None = None  # what was loaded last, and served
        self._kept: dict[str, Ready] = {}  # the last few, the latest last
        self._tried: set[str] = set()
        self._refused: dict[str, str] = {}
        self._blind = False  # the last look at the channels failed
        self._watch = Watch(address)
        self._lock = threading.RLock()
        self._rounding = threading.Lock()
        self._pulls = Pulls()
        self._coming: set[str] = set()  # names whose adapters are on their way

    def first(self) -> Path:
        """The folder to begin with: the channel's model, or the latest before it that is not in
        quarantine.

        Raises:
            RegistryError, CheckpointError: there is none, or it cannot be had.
        """
        self._learn()
        registry = self._address.open()
        ref = self._address.ref
        led = registry.led(ref)
        for digest in led:
            ready = None if digest in self._refused else self._whole(digest)
            if ready is not None:
                self._stable = self._served = ready
                self._keep(ready)
                return ready.folder
        raise RegistryError(f"no model of {ref} can be served: {self._refused[led[0]]}")

    def _whole(self, digest: str) -> Ready | None:
        """A model to begin with; None where it is damaged, or nobody vouches for it."""
        try:
            return Ready.pull(self._address, digest, self._cache)
        except CheckpointError as error:
            self._refuse(digest, str(error))
        except UnverifiedError as error:
            self._refused = {**self._refused, digest: str(error)}
            log.error("%s is not begun with: %s", digest, error)
        return None

    @property
    def named(self) -> dict[str, str]:
        """Digests of what requests may name, by its name."""
        return {name: ready.digest for name, ready in sorted(self._named.items())}

    @property
    def pause_s(self) -> float:
        """Until the next round: none while something is on its way, as the round waits itself."""
        return 0.0 if self._pulls.pending else LOOK_EVERY_S

    def round(self, engine: "Engine | None") -> None:
        """One look at the channels, and where something new is ready soon, another one. Whatever
        goes wrong, the next one tries again."""
        over = time.monotonic() + LOOK_EVERY_S
        again = is_channel(self._address.ref)
        while again:
            with self._rounding:
                self._look(engine)
            again = self._pulls.wait(over - time.monotonic()) and time.monotonic() < over

    def watch(self, encoders: str) -> None:
        """In place of `round`, for a worker that only encodes. encoders: as `Watch.look`."""
        self.message = self._watch.look(encoders)

    def _look(self, engine: "Engine | None") -> None:
        try:
            self._learn()
            registry = self._address.open()
            channels = registry.channels
            stable = channels.read(self._address.ref)
            canary = channels.read(CANARY) if self._address.ref == STABLE else None
            self.message = self._refused.get(stable.digest, "")
            ready = self._prepared(stable.digest, engine, urgent=True)
            with self._lock:
                self._stable = ready or self._stable
            wanted = canary.digest if canary and canary.digest != stable.digest else ""
            ready = self._prepared(wanted, engine)
            with self._lock:
                self._canary, self._share = ready, canary.share if canary else 0.0
            self._judge()
            self._look_for_named(registry, engine)
            self._pulls.sweep()
            tidy(self._cache, [one.folder for one in self._kept.values()])
            self._blind = False
        except (RegistryError, LedgerDown, OSError) as error:
            self._blind, self.message = True, str(error)
            self._pulls.rest()
            self._coming = set()
            log.warning("channels not seen: %s", error)

    def fit(
        self, engine: "Engine", ref: str = "", model: str = "", heed: "Heed" = lambda: None
    ) -> None:
        """Load what a job is for, unless that is loaded. Without a job: the channel's own.

        Args:
            model: the name that the job asks for; empty: none. heed: called while what has that
                name is on its way.

        Raises:
            What heed raises.
            SpecError: nothing of that name is served.
            CheckpointError: what has that name cannot be loaded, or the channels cannot be seen;
                the next try may find more.
            BackendError: this worker could not load what it should, through no fault of the model:
                the engine must not be used any more.
        """
        from engine import swap

        if model:
            self._await(model, engine, heed)
        with self._lock:
            wanted = self._named_for(model) if model else self._for(ref)
        if wanted is None:
            return
        try:
            if wanted.weights != engine.digest:
                self._exchange(engine, wanted)
            self._try_out(engine, wanted)
            self._served = wanted
            return
        except CheckpointError as error:  # the weights before are known to work
            log.exception("%s is not served", wanted.digest)
            self._refuse(wanted.digest, str(error))
        except Exception as error:
            log.exception("%s cannot be loaded here", wanted.digest)
            swap.rename(engine, "")
            raise BackendError(f"{wanted.digest[:12]} cannot be loaded here: {error}") from error
        self._restore(engine)
        if model:  # other weights than these would be another answer than was asked for
            raise CheckpointError(f"{model}: {self.message}")

    def _await(self, model: str, engine: "Engine", heed: "Heed") -> None:
        """A name that is not served may be new, or its adapter on its way."""
        wanted = model not in self._named
        while wanted:
            heed()
            self.round(engine)
            wanted = model not in self._named and model in self._coming

    def _exchange(self, engine: "Engine", wanted: Ready) -> None:
        began = time.monotonic()
        ready = self._resident
        if ready is not None and engine.digest in ready and wanted.weights in ready:
            ready.take(engine, wanted.weights)
        else:
            wanted.take(engine)
        told = "serving %s, digest %s: exchanged in %.3f s"
        log.info(told, wanted.digest, engine.digest, time.monotonic() - began)

    def _try_out(self, engine: "Engine", wanted: Ready) -> None:
        """The small request, once for each model, that of the start included."""
        if wanted.digest not in self._tried:
            began = time.monotonic()
            if try_out(engine, wanted.manifest.evaluation, self._case):
                self._tried.add(wanted.digest)
                log.info("%s tried out in %.3f s", wanted.digest, time.monotonic() - began)

    def _restore(self, engine: "Engine") -> None:
        from engine import swap

        served = self._served
        if served is not None and served.digest in self._refused:
            served = None  # the very model that it began with
        if served is not None and served.weights == engine.digest:
            return  # nothing was touched
        try:
            if served is None:
                raise BackendError("no weights before these are known")
            served.take(engine)
        except (TroupeError, OSError) as error:
            swap.rename(engine, "")
            raise BackendError(f"the weights before cannot be loaded again: {error}") from error

    def note(self, failed: bool, score: float | None) -> None:
        """The job in hand has ended."""
        if self._served is not None:
            try:
                self._fleet.note(self._served.digest, failed, score)
            except LedgerDown as error:
                log.warning("outcome not counted: %s", error)

    def meant(self, ref: str, model: str = "") -> str:
        """The digest of what `fit` will load for a job, as it stands now; empty: not known yet."""
        with self._lock:
            found = self._named.get(model) if model else self._for(ref)
        return found.digest if found else ""

    def _for(self, ref: str) -> Ready | None:
        canary = self._canary
        if ref and canary and canary.digest not in self._refused and part_of(ref) < self._share:
            return canary
        return self._stable

    def _named_for(self, model: str) -> Ready:
        found = self._named.get(model)
        if found is None and self._blind:
            raise CheckpointError(f"{model}: the channels cannot be seen now: {self.message}")
        if found is None or found.digest in self._refused:
            why = "in quarantine" if found else "not served here, or not any more"
            raise SpecError("model", f"{model} is {why}")
        return found

    def _look_for_named(self, registry: Registry, engine: "Engine | None") -> None:
        """Adapters of all other channels. One that cannot be had leaves the one before it."""
        found: dict[str, Ready] = {}
        coming = set()
        for name in registry.channels.names():
            if name in {self._address.ref, STABLE, CANARY}:
                continue
            digest = registry.channels.read(name).digest
            if digest and self._is_adapter.get(digest, True):
                ready = self._adapter(registry, digest, engine) or self._named.get(name)
                found |= {name: ready} if ready else {}
                coming |= {name} if self._pulls.is_late(digest) else set()
        with self._lock:
            self._named, self._coming = found, coming
        if engine is not None:
            self._lay_ready(engine)

    def _adapter(
        self, registry: Registry, digest: str, engine: "Engine | None"
    ) -> Ready | None:
        """None for a whole model, too: its channel is for other workers."""
        if digest in self._refused:
            return None
        try:
            if digest not in self._is_adapter:
                self._is_adapter[digest] = self._is_mine(registry, digest)
        except (CheckpointError, RegistryError) as error:
            log.warning("%s is not looked at: %s", digest, error)
            return None
        return self._prepared(digest, engine) if self._is_adapter[digest] else None

    def _is_mine(self, registry: Registry, digest: str) -> bool:
        """Whether it is an adapter of a model such as this worker serves: its channel may be for
        others."""
        base, stable = base_of(registry.manifest(digest)), self._stable
        if base is None or stable is None:
            return False
        return registry.manifest(base).configs == stable.manifest.configs

    def _lay_ready(self, engine: "Engine") -> None:
        """Of the adapters those whose base is what the channel leads to."""
        from engine.resident import Resident

        base = self._stable
        if base is None or base.held is None or not self._named:
            self._resident = None
            return
        if self._resident is None or self._resident.base != base.weights:
            self._resident = Resident(base.held)
        for one in self._named.values():
            merged = one.manifest.lineage.get("merged", {})
            fits = merged.get("base") == base.digest and one.weights not in self._resident
            if fits and one.held is not None:
                self._resident.add(engine, one.held)
        self._resident.keep({one.weights for one in self._named.values()})

    def _prepared(
        self, digest: str, engine: "Engine | None", urgent: bool = False
    ) -> Ready | None:
        """A model that `fit` may load; None where there is none, it must not be, or it is still on
        its way. urgent: nothing else is pulled before it."""
        if not digest or digest in self._refused:
            return None
        try:
            found = self._kept.get(digest)
            if found is None or (engine is not None and found.held is None):
                found = self._pulls.take(digest, partial(self._made, digest, engine), urgent)
            if found is None:
                return None
        except CheckpointError as error:
            self._refuse(digest, str(error))
            return None
        except BackendError as error:  # an engine made anew may take it
            self.message = f"{digest[:12]} needs a new worker: {error}"
            log.warning("%s", self.message)
            return None
        except RegistryError as error:  # not vouched for here, or the store is away
            self.message = f"{digest[:12]}: {error}"
            log.warning("%s", self.message)
            return None
        self._keep(found)
        return found

    def _keep(self, ready: Ready) -> None:
        """The latest last; what is too many is let go, but nothing that serves or may."""
        with self._lock:
            self._kept.pop(ready.digest, None)
            self._kept[ready.digest] = ready
            serving = (self._stable, self._canary, self._served, *self._named.values())
            in_use = {id(one) for one in serving}
            old = [one for one in self._kept.values() if id(one) not in in_use][:-1]
            for one in old[: max(len(self._kept) - KEPT, 0)]:
                self._kept.pop(one.digest).close()

    def _made(self, digest: str, engine: "Engine | None", heed: "Heed") -> Ready:
        """Beside the looks, see `workers.pulls`."""
        known = self._kept.get(digest)  # begun with, and not looked at yet
        found = known.again() if known else Ready.pull(self._address, digest, self._cache, heed)
        if engine is not None:
            found.check(engine, heed)
            prepare(engine, self._case, heed)
        return found

    def _judge(self) -> None:
        """A canary that is worse than the channel's own model is taken back, everywhere."""
        canary, stable = self._canary, self._stable
        if canary is None or stable is None:
            return
        outcomes = self._fleet.outcomes
        worse = outcomes(canary.digest).worse_than(outcomes(stable.digest))
        if worse:
            self._refuse(canary.digest, f"canary: {worse}")

    def _learn(self) -> None:
        """What other workers have found out, and what an operator has released."""
        self._refused = {d: one.reason for d, one in self._fleet.quarantined().items()}

    def _refuse(self, digest: str, reason: str) -> None:
        self._refused = {**self._refused, digest: reason}
        self.message = f"{digest[:12]} is in quarantine: {reason}"
        log.error("%s is in quarantine: %s", digest, reason)
        try:
            self._fleet.quarantine(digest, reason, self._worker)
        except LedgerDown as error:
            log.warning("not told to other workers: %s", error)
