"""How a job is named inside: `<tenant>/<video id>`, in every key of every store.

A client only ever names the second half; the first is the tenant that its key belongs to. So
another tenant's job cannot be reached by any spelling: its name cannot be built.
"""

import hashlib
import os
import threading

LOCAL = "local"  # the tenant of a service without keys


class Ids:
    """Names that nobody can guess: 128 bits each, of which the system is asked for many at once,
    because asking costs more than a look at Redis on some machines."""

    AT_ONCE = 256

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = b""
        os.register_at_fork(after_in_child=self._forget)

    def new(self) -> str:
        """32 hexadecimal digits."""
        with self._lock:
            if not self._left:
                self._left = os.urandom(16 * self.AT_ONCE)
            given, self._left = self._left[:16], self._left[16:]
        return given.hex()

    def _forget(self) -> None:
        """A forked process would give the same names as this one."""
        self._lock = threading.Lock()
        self._left = b""


_IDS = Ids()


def new_id(kind: str) -> str:
    """`<kind>_` and digits: of a video, a subject, a request."""
    return f"{kind}_{_IDS.new()}"


def ref_of(tenant: str, video_id: str) -> str:
    """A job's name inside."""
    return f"{tenant}/{video_id}"


def tenant_of(ref: str) -> str:
    """Whose job it is."""
    return ref.partition("/")[0]


def id_of(ref: str) -> str:
    """What the client calls it."""
    return ref.partition("/")[2]


def home(ref: str) -> str:
    """The prefix of all its blobs."""
    tenant, _, video_id = ref.partition("/")
    return f"t/{tenant}/videos/{video_id}"


def part_of(ref: str) -> float:
    """Where a job falls between 0 and 1, the same at every attempt."""
    return int.from_bytes(hashlib.sha256(ref.encode()).digest()[:8], "big") / 2**64
