"""One attempt at a job: its candidates are made one after the other, judged and kept, and the
likest is given.

    seed of the next ─▶ generate (or go on where another worker stopped) ─▶ judge ─▶ keep

Now and then where it stands is written down: the state of the run as a blob, and in the record
which candidate it is of and what became of those before. So the next worker makes no finished
candidate again, and no step but the last few. A state that does not fit what is here (other
weights, another kind of machine) is passed over: the candidate begins anew and ends in the same
video.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from engine.candidates import best, goes_on, seed_of
from engine.errors import SpecError, StateError
from engine.spec import Reference, Spec, Wish
from service import blobs as store
from service.errors import BlobError
from service.jobs import Claim
from service.refs import id_of, tenant_of
from workers.boot import Station
from workers.encode import encodings_of, forget
from workers.source import edit_of, finished
from workers.work import Work, fetch

if TYPE_CHECKING:
    from engine.edit import Edit
    from engine.likeness import Likeness
    from engine.pipeline import Engine
    from engine.state import DenoiseState
    from engine.video import Video

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One finished video. overall: its likeness, 1 where nobody judges; keys: of its files."""

    seed: int
    overall: float
    keys: dict[str, str]
    told: dict[str, Any]
    likeness: dict[str, Any] | None = None


@dataclass(frozen=True)
class Saved:
    """Where a job stands between two workers: its finished candidates, and the blob of the state
    of the next one, if that was saved."""

    made: tuple[Candidate, ...] = ()
    key: str = ""
    digest: str = ""  # of the weights

    @classmethod
    def of(cls, text: str) -> "Saved":
        """From a record's field."""
        if not text:
            return cls()
        values = json.loads(text)
        made = tuple(Candidate(**one) for one in values["made"])
        return cls(made, values["key"], values.get("digest", ""))

    def to_json(self) -> str:
        """As the record's field."""
        return json.dumps(asdict(self))


@dataclass
class Attempt:
    """The work between a claim and its commit."""

    claim: Claim
    place: Station
    engine: "Engine"
    work: Work
    made: list[Candidate] = field(default_factory=list)
    more: list[Reference] = field(default_factory=list)  # pictures that only the judge sees
    edit: "Edit | None" = None

    def make(self) -> dict[str, Any]:
        """Everything stored; returns the result as the record will hold it.

        Raises:
            SpecError: the request cannot be made here.
            Cancelled: stop; `work.stopped` says why.
        """
        request = self.claim.request
        spec, wish = Spec.from_json(request["spec"]), Wish(**request.get("wish", {}))
        references = [self._fetch(one) for one in request["references"]]
        self.more = [self._fetch(one) for one in request.get("more", [])]
        self.edit = self.work.patiently(lambda: edit_of(self.place, request, spec))
        if wish.judged and self.place.judge is None:
            raise SpecError("n", "this model brings nobody who could compare candidates; use 1")
        saved = Saved.of(self.claim.saved)
        if saved.digest != self.engine.digest:
            saved = Saved()  # candidates of other weights are not compared with these
        self.made = list(saved.made)
        self.work.begin(self.engine.digest, len(self.made), wish.n, wish.judged)
        key = saved.key
        while goes_on(wish, [one.overall for one in self.made]):
            self.made.append(self._candidate(spec, references, key))
            key = ""
            if goes_on(wish, [one.overall for one in self.made]):
                self.work.note(self._saved(tuple(self.made)), len(self.made), spec.steps)
        self.work.enter("commit")
        return self._result(wish)

    def _candidate(self, spec: Spec, references: Sequence[Reference], key: str) -> Candidate:
        seeded = replace(spec, seed=seed_of(spec.seed, len(self.made)))
        video = self._resumed(seeded, references, key)
        self.work.enter("store")
        # The judge looks while the files are made, which keeps to one thread for the most part.
        with ThreadPoolExecutor(1, thread_name_prefix="judge") as beside:
            looked = beside.submit(self._judged, video, references)
            whole = self.work.patiently(lambda: finished(self.place, self.claim.request, video))
            pictures = [hashlib.sha256(one.rgb).hexdigest() for one in references]
            seal = self.place.seal(id_of(self.claim.ref), seeded, pictures)
            keys, told = self.work.keep(whole, references, seal)
        likeness = looked.result()
        if whole.made is not None:
            told["forwards"] = {"asked": whole.made.asked, "computed": whole.made.computed}
        overall = 1.0 if likeness is None else likeness.overall
        return Candidate(
            seeded.seed, overall, keys, told, None if likeness is None else likeness.to_json()
        )

    def _judged(self, video: "Video", references: Sequence[Reference]) -> "Likeness | None":
        judge = self.place.judge
        if judge is None or not references:
            return None
        return judge.score(video.frames, [*references, *self.more])

    def _fetch(self, one: dict[str, str]) -> Reference:
        return self.work.patiently(lambda: fetch(self.place, one))

    def _resumed(self, spec: Spec, references: Sequence[Reference], key: str) -> "Video":
        """From where another worker stopped, or from the beginning."""
        state = self._state(key)
        if state is not None:
            try:
                return self._generate(spec, references, state)
            except StateError as error:
                log.warning("%s begins anew: %s", self.claim.ref, error)
        return self._generate(spec, references, None)

    def _state(self, key: str) -> "DenoiseState | None":
        if not key:
            return None
        try:
            data = self.work.patiently(lambda: store.get(self.place.blobs, key))
            return self.engine.state_of(data)
        except (BlobError, StateError) as error:
            log.warning("%s begins anew: %s", self.claim.ref, error)
            return None

    def _generate(
        self, spec: Spec, references: Sequence[Reference], state: "DenoiseState | None"
    ) -> "Video":
        """The video, from encodings of another worker's where this one has no encoders."""
        ref, work = self.claim.ref, self.work
        make: Callable[..., Video] = self.engine.generate
        about: dict[str, Any] = {"owner": ref, "resume": state, "on_state": self._save}
        about |= {} if self.edit is None else {"edit": self.edit}
        scope = tenant_of(ref)
        if self.place.runtime.encoders != "remote":
            return make(spec, references, work.on_progress, scope, **about)
        try:
            encoded = encodings_of(ref, self.place, self.place.encoders, work.hear)
            return make(spec, references, work.on_progress, scope, encoded=encoded, **about)
        finally:
            forget(ref, self.place)

    def _save(self, state: "DenoiseState") -> None:
        """After every step: write it down if that is worth its time."""
        made = tuple(self.made)
        self.work.save(
            state.to_bytes,
            lambda key: self._saved(made, key),
            len(made),
            state.step.done,
            state.step.num_steps,
        )

    def _saved(self, made: tuple[Candidate, ...], key: str = "") -> str:
        return Saved(made, key, self.engine.digest).to_json()

    def _result(self, wish: Wish) -> dict[str, Any]:
        chosen = best([one.overall for one in self.made])
        given = self.made[chosen]
        result = {**given.keys, **given.told, "seed": given.seed, "identity": given.likeness}
        if wish.judged:
            result["candidates"] = [
                {"seed": one.seed, "overall": one.overall, "chosen": at == chosen, **one.keys}
                for at, one in enumerate(self.made)
            ]
        return {**result, "timings": self.work.timings, "attempt": self.claim.attempt}
