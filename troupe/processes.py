"""Child processes that are watched: started in order, restarted when they die, stopped in reverse.

Every child leads a session of its own, so that Ctrl-C in a terminal reaches this process only and
the order of stopping stays ours. On Linux the kernel sends a child SIGTERM when this process is
killed outright, so nothing is left behind.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
RESTARTS = 5
RESTART_WINDOW_S = 60.0


@dataclass(frozen=True)
class Command:
    """What to run. `grace_s` is how long it may take to end after SIGTERM before SIGKILL."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    grace_s: float = 5.0


class ChildFailed(Exception):
    """A child that will not stay up; the message holds the end of its log."""


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Child:
    """One running command and the times at which it was started again."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.starts: deque[float] = deque(maxlen=RESTARTS + 1)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts.append(time.monotonic())
        self.command.log.parent.mkdir(parents=True, exist_ok=True)
        with self.command.log.open("ab") as log:
            return subprocess.Popen(
                self.command.argv,
                env=dict(self.command.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        """Process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def restart(self) -> None:
        """Start it again. Raises ChildFailed when it has died too often lately."""
        lately = [at for at in self.starts if time.monotonic() - at < RESTART_WINDOW_S]
        if len(lately) > RESTARTS:
            raise ChildFailed(self.obituary())
        self._kill_group()
        self._process = self._start()

    def obituary(self) -> str:
        """How it ended and what it said last."""
        code = self._process.poll()
        how = "does not answer" if code is None else f"ended with status {code}"
        return f"{self.command.name} {how}. The end of {self.command.log}:\n{self.tail()}"

    def tail(self, num_lines: int = 12) -> str:
        """The last lines of its log."""
        if not self.command.log.exists():
            return ""
        text = self.command.log.read_bytes()[-8000:].decode(errors="replace")
        return "\n".join(text.splitlines()[-num_lines:])

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to its whole group after the grace period."""
        if self.is_alive:
            self._process.terminate()
            try:
                self._process.wait(self.command.grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._kill_group()

    def _kill_group(self) -> None:
        """Ends what a dead leader left behind, a pool child for instance."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


class Supervisor:
    """Children in the order of their dependence. Use as a context manager: leaving it stops all."""

    def __init__(self, on_restart: Callable[[str], None]) -> None:
        self._children: list[Child] = []
        self._on_restart = on_restart

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def children(self) -> tuple[Child, ...]:
        """All children, in starting order."""
        return tuple(self._children)

    def start(self, command: Command) -> Child:
        """Start one more child."""
        child = Child(command)
        self._children.append(child)
        return child

    def check(self) -> None:
        """Restart whatever has died. Raises ChildFailed when one will not stay up."""
        for child in self._children:
            if not child.is_alive:
                self._on_restart(child.obituary())
                child.restart()

    def stop(self) -> None:
        """Stop all, last started first."""
        while self._children:
            self._children.pop().stop()
