"""Children are restarted, given up on, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from troupe.processes import RESTARTS, ChildFailed, Command, Supervisor


def _command(folder: Path, code: str, grace_s: float = 5.0) -> Command:
    argv = (sys.executable, "-u", "-c", code)
    return Command("probe", argv, dict(os.environ), folder / "probe.log", grace_s)


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def _exists(pid: int) -> bool:
    """Whether a process runs; a zombie that waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_dead_child_is_reported_and_started_again(tmp_path: Path) -> None:
    told: list[str] = []
    with Supervisor(told.append) as supervisor:
        child = supervisor.start(_command(tmp_path, "import time; print('up'); time.sleep(60)"))
        _until(lambda: "up" in child.tail())
        first = child.pid
        os.kill(first, signal.SIGKILL)
        _until(lambda: not child.is_alive)
        supervisor.check()
        assert child.is_alive and child.pid != first
    assert len(told) == 1 and "probe ended with status -9" in told[0]


def test_child_that_will_not_stay_up_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    with Supervisor(lambda _: None) as supervisor:
        child = supervisor.start(_command(tmp_path, "raise SystemExit('no such model')"))
        with pytest.raises(ChildFailed, match="no such model"):
            for _ in range(RESTARTS + 1):
                _until(lambda: not child.is_alive)
                supervisor.check()


def test_leaving_stops_all_in_reverse_order(tmp_path: Path) -> None:
    said = tmp_path / "order"
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    open({str(said)!r}, 'a').write(sys.argv[1]); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up')\n"
        "while True: time.sleep(0.05)"
    )
    with Supervisor(lambda _: None) as supervisor:
        for name in "abc":
            argv = (sys.executable, "-u", "-c", code, name)
            log = tmp_path / f"{name}.log"
            child = supervisor.start(Command(name, argv, dict(os.environ), log))
            _until(lambda child=child: "up" in child.tail())  # type: ignore[misc]
    assert said.read_text() == "cba"


def test_child_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up')\n"
        "time.sleep(60)"
    )
    with Supervisor(lambda _: None) as supervisor:
        child = supervisor.start(_command(tmp_path, code, grace_s=0.2))
        _until(lambda: "up" in child.tail())
        pid = child.pid
    assert not _exists(pid)


def test_grandchildren_do_not_outlive_a_stop(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid); time.sleep(60)"
    )
    with Supervisor(lambda _: None) as supervisor:
        child = supervisor.start(_command(tmp_path, code))
        _until(lambda: child.tail().strip().isdigit())
        grandchild = int(child.tail())
    _until(lambda: not _exists(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_children_end_when_the_supervisor_is_killed_outright(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from troupe.processes import Command, Supervisor
argv = (sys.executable, "-c", "import time; time.sleep(60)")
child = Supervisor(print).start(Command("c", argv, dict(os.environ), Path({str(tmp_path)!r}, "c")))
print(child.pid, flush=True); time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        assert _exists(pid)
        parent.kill()
        parent.wait()
    _until(lambda: not _exists(pid))
