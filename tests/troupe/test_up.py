"""`troupe up` as a user runs it: it gets ready, mends itself, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from troupe.up import own_redis_url


def _until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=5.0).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def running(random_model: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A `troupe up` that is ready, and its URL."""
    options = ["--port=0", f"--model={random_model}", f"--state={tmp_path / 'state'}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    env = {name: value for name, value in env.items() if "REDIS_URL" not in name}
    with subprocess.Popen(
        [sys.executable, "-c", "from troupe.main import main; main()", "up", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
    ) as process:
        assert process.stdout is not None
        said = ""
        while (line := process.stdout.readline()) and "Studio page" not in line:
            said += line
        found = re.search(r"http://[\d.:]+", line)
        assert found, f"never ready: {said}"
        yield process, found.group()
        if process.poll() is None:
            process.kill()


@pytest.mark.slow
def test_gets_ready_mends_itself_and_leaves_nothing(
    running: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = running
    assert _is_up(url)
    assert "<title>Troupe" in httpx.get(url, follow_redirects=True).text

    children = psutil.Process(process.pid).children(recursive=True)
    gateway = next(child for child in children if "service.app:create_app" in child.cmdline())
    gateway.kill()
    _until(lambda: not gateway.is_running() and _is_up(url))

    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 5, "redis, gateway, reaper, the worker and its pool child"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    _until(lambda: not any(child.is_running() for child in children))


def test_own_redis_is_used_where_the_environment_names_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TROUPE_REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://one:6379/0")
    assert own_redis_url() == "redis://one:6379/0"
    monkeypatch.setenv("TROUPE_REDIS_URL", "redis://two:6379/0")
    assert own_redis_url() == "redis://two:6379/0"


def test_missing_model_is_told_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from troupe.main import main; main()", "up"]
    told = subprocess.run(
        [*command, f"--model={tmp_path}", f"--state={tmp_path / 'state'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert told.returncode == 1
    assert "no manifest.json" in told.stderr and "Stopping" not in told.stderr
