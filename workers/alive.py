"""`python -m workers.alive [--ready] [PID]`: do this machine's workers live? Status 0, or 1 and the
reason.

Made for an orchestrator's liveness probe: it asks nobody, imports neither Celery nor torch, and
takes some hundredths of a second. Each worker's child writes what it knows into a file at every
announcement; the probe reads the files of this user's workers, or of the one whose first process
(Celery's parent) has this id. A worker does not live when

- its child has not written for three leases: it is gone, or a call that holds the interpreter
  hangs;
- it stands idle while the ledger has had a job for it for a minute: it does not hear its doorbell
  (celery#8030, #8091, #8384, #10205);
- the job in hand has not moved for three times TROUPE_STALL_S: by then the ledger gave it to
  another worker, and the process should have ended itself.

With `--ready` they must also be able to take jobs: model loaded, store writable. That is for a
readiness probe, so that an update of many workers stops at the first that cannot serve.

Times are those of CLOCK_MONOTONIC, which all processes of a machine share and nobody sets.
"""

import json
import os
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

DEAF_S = 60.0  # of claimable work that an idle worker does not take
SILENT_LEASES = 3
STUCK_STALLS = 3


@dataclass(frozen=True)
class Pulse:
    """What a worker knows of itself; times in seconds of CLOCK_MONOTONIC, None: does not apply.

    born: of its first process, see `born_at`; another process of the same id is another worker.
    at: when it was written. moved: the last step of the job in hand, or its beginning. wanted:
    since when the ledger has had work for it while it is idle. unfit: why it cannot take jobs.
    """

    at: float
    lease_s: float
    stall_s: float
    moved: float | None = None
    wanted: float | None = None
    born: int | None = None
    unfit: str = ""

    def verdict(self, now: float) -> str:
        """Why this is no living worker's; empty: it is."""
        if not 0 <= now - self.at <= SILENT_LEASES * self.lease_s:
            return f"has not been heard for {now - self.at:.0f} s"
        if self.moved is not None and now - self.moved > STUCK_STALLS * self.stall_s:
            return f"holds a job that has not moved for {now - self.moved:.0f} s"
        if self.wanted is not None and now - self.wanted > DEAF_S:
            return f"is idle, and jobs have waited for it for {now - self.wanted:.0f} s"
        return ""


def folder() -> Path:
    """Where the files of this user's workers lie."""
    return Path(tempfile.gettempdir()) / f"troupe-alive-{os.getuid()}"


def tell(pulse: Pulse, pid: int) -> None:
    """Write a worker's file; pid: of its first process. Raises OSError."""
    place = folder()
    place.mkdir(mode=0o700, exist_ok=True)
    fresh = place / f".{pid}.{os.getpid()}"
    fresh.write_text(json.dumps(asdict(pulse)))
    fresh.replace(place / str(pid))  # or a probe could read half of it


def forget(pid: int) -> None:
    """Remove a worker's file: it leaves in good order. Raises OSError."""
    (folder() / str(pid)).unlink(missing_ok=True)


def faults(pid: int | None = None, ready: bool = False) -> list[str]:
    """What is wrong with this user's workers, or with one; none: nothing. ready: that it cannot
    take jobs is wrong too."""
    now = time.monotonic()
    found = {pid: _read(pid)} if pid else {one: _read(one) for one in _written()}
    if pid is None:
        # What was killed outright is its supervisor's affair.
        found = {one: pulse for one, pulse in found.items() if pulse is not None}
    told = {
        one: _wrong(pulse, now, ready) if pulse else "has not written that it lives"
        for one, pulse in found.items()
    }
    return [f"worker {one} {why}" for one, why in told.items() if why] if told else ["no worker"]


def _wrong(pulse: Pulse, now: float, ready: bool) -> str:
    return pulse.verdict(now) or (f"is not ready: {pulse.unfit}" if ready and pulse.unfit else "")


def _written() -> list[int]:
    with suppress(FileNotFoundError):
        return sorted(int(path.name) for path in folder().iterdir() if path.name.isdigit())
    return []


def _read(pid: int) -> Pulse | None:
    """What the worker wrote, if it runs: a file may outlive its worker, and its id may be somebody
    else's by now."""
    with suppress(FileNotFoundError):
        pulse = Pulse(**json.loads((folder() / str(pid)).read_text()))
        born = born_at(pid)
        return pulse if born is not None and pulse.born in {None, born} else None
    return None


def born_at(pid: int) -> int | None:
    """When a process began, in clock ticks since the machine's start (proc(5), stat 22); where no
    /proc tells, 0 for each that runs. None: it does not run."""
    with suppress(FileNotFoundError, ProcessLookupError):
        # The second field is a name in brackets, which may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return 0


def main() -> None:
    """Entry point."""
    ready = sys.argv[1:2] == ["--ready"]
    given = sys.argv[2 if ready else 1 :]
    if len(given) > 1 or not all(one.isdigit() for one in given):
        sys.exit("usage: python -m workers.alive [--ready] [PID]")
    if found := faults(int(given[0]) if given else None, ready):
        sys.exit("; ".join(found))


if __name__ == "__main__":
    main()
