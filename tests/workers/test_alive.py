"""Does a worker live: asked of its file, by a process that imports next to nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from service.ledger import Ledger
from tests.service.rig import ROOT, Service, request_of, wait_for
from tests.workers.scripted import load_scripted
from workers import alive, boot
from workers.alive import DEAF_S, Pulse
from workers.boot import Station
from workers.settings import Settings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this test alone, in this process and in those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(alive.tempfile, "gettempdir", lambda: str(tmp_path))
    return alive.folder()


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.alive", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("pulse", "why"),
    [
        (Pulse(99.0, 15, 600), ""),
        (Pulse(100 - 45.0, 15, 600), ""),
        (Pulse(100 - 46.0, 15, 600), "has not been heard for 46 s"),
        (Pulse(101.0, 15, 600), "has not been heard for -1 s"),  # of before the machine's start
        (Pulse(99.0, 15, 20, moved=41.0), ""),
        (Pulse(99.0, 15, 20, moved=39.0), "holds a job that has not moved for 61 s"),
        (Pulse(99.0, 15, 20, wanted=100 - DEAF_S), ""),
        (Pulse(99.0, 15, 20, wanted=99 - DEAF_S), "jobs have waited for it for 61 s"),
    ],
)
def test_what_counts_as_dead(pulse: Pulse, why: str) -> None:
    verdict = pulse.verdict(100.0)
    assert verdict == "" if not why else why in verdict


def test_the_probe_needs_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import workers.alive\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "['workers']", done.stderr


def test_who_lives_may_not_be_ready_yet() -> None:
    alive.tell(Pulse(time.monotonic(), 15, 600, unfit="loading its checkpoint"), os.getpid())
    assert (probe().returncode, probe("--ready").returncode) == (0, 1)
    assert "is not ready: loading its checkpoint" in probe("--ready", str(os.getpid())).stderr
    alive.tell(Pulse(time.monotonic(), 15, 600), os.getpid())
    assert probe("--ready").returncode == 0


def test_no_file_is_no_worker_and_the_dead_are_not_asked_for() -> None:
    assert (probe().returncode, probe().stderr.strip()) == (1, "no worker")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive.tell(Pulse(time.monotonic() - 1000, 15, 600), gone.pid)
    assert probe().stderr.strip() == "no worker"
    assert probe(str(gone.pid)).returncode == 1
    alive.tell(Pulse(time.monotonic(), 15, 600), os.getpid())
    assert probe().returncode == probe(str(os.getpid())).returncode == 0
    alive.forget(os.getpid())
    assert "has not written" in probe(str(os.getpid())).stderr
    assert probe("--help").returncode == 1


def test_another_process_of_the_same_id_is_no_worker() -> None:
    """Ids come round; the file of a worker that was killed stays."""
    born = alive.born_at(os.getpid())
    since_start_s = psutil.Process().create_time() - psutil.boot_time()
    assert born is not None
    assert born / os.sysconf("SC_CLK_TCK") == pytest.approx(since_start_s, abs=2)
    alive.tell(Pulse(time.monotonic() - 1000, 15, 600, born=born - 1), os.getpid())
    assert alive.faults() == ["no worker"]
    assert "has not written" in alive.faults(os.getpid())[0]
    alive.tell(Pulse(time.monotonic(), 15, 600, born=born), os.getpid())
    assert alive.faults() == alive.faults(os.getpid()) == []


def test_one_of_several_that_is_silent_is_named() -> None:
    alive.tell(Pulse(time.monotonic(), 15, 600), os.getpid())
    alive.tell(Pulse(time.monotonic() - 1000, 15, 600), os.getppid())
    assert alive.faults() == [f"worker {os.getppid()} has not been heard for 1000 s"]
    assert alive.faults(os.getpid()) == []


def test_an_idle_worker_notes_since_when_it_is_wanted(
    settings: Settings, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "load_engine", load_scripted)
    monkeypatch.setattr(boot, "load_judge", lambda folder: None)
    station = Station(settings.model_copy(update={"model_dir": tmp_path}))

    def noted() -> Pulse:
        station.pulse()
        found = alive._read(os.getppid())
        assert found is not None
        return found

    ledger.submit("local/a", request_of("anna"))
    assert noted().wanted is None  # it has no engine yet, and says so elsewhere
    station.load()
    first = noted().wanted
    assert first is not None and noted().wanted == first
    station.take("local/b")
    busy = noted()
    assert busy.wanted is None and busy.moved is not None
    station.move()
    assert (noted().moved or 0) > busy.moved
    station.take("")
    assert (noted().wanted or 0) > first and noted().moved is None
    ledger.cancel("local/a")
    assert noted().wanted is None
    station.leave()
    assert alive.faults(os.getppid()) != []
    station.ledger.close()


def test_a_child_that_does_not_get_on_is_seen_from_outside(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    service = Service(settings.model_copy(update={"model_dir": tmp_path / "model"}), tmp_path)
    try:
        service.start("worker")
        pid = service.pid("worker")
        wait_for(lambda: probe(str(pid)).returncode == 0)
        wait_for(lambda: probe().returncode == 0)
        (child,) = psutil.Process(pid).children()
        child.send_signal(signal.SIGSTOP)
        wait_for(lambda: "has not been heard" in probe(str(pid)).stderr)
        child.send_signal(signal.SIGCONT)
        wait_for(lambda: probe(str(pid)).returncode == 0)
        assert service.stop("worker") == 0
        assert probe().stderr.strip() == "no worker"
    finally:
        service.close()
