"""The small request of `engine.golden` where encoders are remote: it is asked for like a job's
encodings, under a name that no job has, and kept.

It depends on nothing but the encoders' files, so one blob serves all workers and all models.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.errors import Cancelled, TroupeError
from service.errors import ServiceError
from service.refs import ref_of

if TYPE_CHECKING:
    from engine.encodings import Encoded
    from engine.folders import Heed
    from engine.pipeline import Engine
    from engine.presets import Preset
    from workers.boot import Station

log = logging.getLogger(__name__)
TENANT = ".golden"  # in place of one: tenants' names have no dots


# How long encoders are waited for: beside the jobs, and with one in hand, whose weights are new.
BESIDE_S, IN_HAND_S = 60.0, 5.0


def request(preset: "Preset") -> Mapping[str, Any]:
    """As a job's record holds one."""
    from engine import golden

    return {"spec": golden.request(preset).to_json(), "references": []}


class Case:
    """The small request's encodings for one worker."""

    def __init__(self, place: "Station") -> None:
        self._place = place
        self._known: dict[str, Encoded] = {}  # by the encoders that made it: one

    def __call__(self, tell: "Heed", limit_s: float) -> "Encoded | None":
        """None where nobody has made them in time, which the log tells. tell: as `encodings_of`."""
        from workers.encode import encodings_of

        digest = self._place.encoders
        if digest not in self._known:
            try:
                ref = ref_of(TENANT, digest)
                found = encodings_of(ref, self._place, digest, tell, limit_s)
                self._known = {digest: found}
            except Cancelled:
                raise
            except (TroupeError, ServiceError) as error:
                log.warning("the small request was not encoded: %s", error)
        return self._known.get(digest)


def prepare(engine: "Engine", case: Case | None, heed: "Heed") -> None:
    """Beside the jobs, so that `try_out` need not wait. Raises what `heed` raises."""
    if engine.encoders.text is None and case is not None:
        case(heed, BESIDE_S)


def try_out(engine: "Engine", evaluation: Mapping[str, Any], case: Case | None) -> bool:
    """The small request, made and compared. False: nobody encodes it now, so no job will come far
    either; to be tried again before the next.

    Raises CheckpointError: as `engine.golden.check`.
    """
    from engine import golden

    encoded = None
    if engine.encoders.text is None:
        encoded = None if case is None else case(lambda: None, IN_HAND_S)
        if encoded is None:
            return False
    golden.check(engine, evaluation, encoded)
    return True
