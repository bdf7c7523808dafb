"""The whole service as processes that a bench may kill: two Valkeys, gateways, workers, a reaper.

The ledger's Valkey is as durable as the ledger asks for; the broker's is another one, which may
lose everything. Only the engine is scripted (`bench.scripted`). Whatever dies is started again by
`tend`, which the thread that made the stage has to call: the kernel ends a child with the thread
that started it.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis

from service.ledger import Ledger, connect
from service.roster import Roster
from troupe.processes import Child, Command
from troupe.stack import redis_argv
from workers.settings import Settings

GATEWAY, WORKER = "service.app:create_app", "bench.scripted_worker"
GRACE_S = 10.0  # between SIGTERM and SIGKILL
LIMIT_S = 120.0


@contextmanager
def stage(
    gateways: int = 2,
    workers: int = 2,
    env: Mapping[str, str] | None = None,
    apart: Mapping[str, Mapping[str, str]] | None = None,
    gateway: str = GATEWAY,
    worker: str = WORKER,
    **given: Any,
) -> Iterator["Stage"]:
    """A stage in a folder of its own, which goes with it.

    Args:
        env: for all processes. apart: for one of them, by its name.
        gateway: the factory that uvicorn serves. worker: the app that Celery works for.
        given: fields of `workers.settings.Settings`.
    """
    # A socket's path may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="tb"))
    found = Stage(folder, gateways, workers, env or {}, apart or {}, given, (gateway, worker))
    try:
        yield found
    finally:
        found.close()
        shutil.rmtree(folder, ignore_errors=True)


class Stage:
    """Processes by name: ledger, broker, reaper, gateway-1 …, worker-1 …"""

    def __init__(
        self,
        folder: Path,
        gateways: int,
        workers: int,
        env: Mapping[str, str],
        apart: Mapping[str, Mapping[str, str]],
        given: Mapping[str, Any],
        apps: tuple[str, str] = (GATEWAY, WORKER),
    ) -> None:
        self.folder = folder
        self._gateway, self._worker = apps
        self.settings = Settings(
            **{
                "redis_url": f"unix://{folder}/ledger.sock",
                "broker_url": f"unix://{folder}/broker.sock",
                "blobs_url": str(folder / "blobs"),
                "key_prefix": "bench",
                "max_queued": 0,
                "decode_timeout_s": 60,
                **given,
            }
        )
        self.ports = {f"gateway-{n}": free_port() for n in range(1, gateways + 1)}
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self.restarts = 0
        self._env = {
            **os.environ,
            **as_env(self.settings),
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **env,
        }
        self._apart = apart
        self._children: dict[str, Child] = {}
        self._down: set[str] = set()
        for name in ("ledger", "broker"):
            self.start(name)
            _wait_for_redis(self.socket(name))
        self.redis = connect(self.settings)
        self.ledger = Ledger(self.redis, self.settings)

    @property
    def urls(self) -> list[str]:
        """Of the gateways."""
        return [self.url(name) for name in self.ports]

    def url(self, name: str) -> str:
        """Of one gateway."""
        return f"http://127.0.0.1:{self.ports[name]}"

    def socket(self, name: str) -> Path:
        """Of the ledger or the broker."""
        return self.folder / f"{name}.sock"

    def start_all(self) -> None:
        """Everything, and wait until it serves."""
        for name in ("reaper", *self.ports, *self.workers):
            self.start(name)
        self.wait(self._serves)

    def start(self, name: str) -> None:
        """One process."""
        self._down.discard(name)
        env = self._env | dict(self._apart.get(name, {}))
        log = self.folder / "logs" / f"{name}.log"
        self._children[name] = Child(Command(name, self._argv(name), env, log, GRACE_S))

    def _argv(self, name: str) -> tuple[str, ...]:
        module = (sys.executable, "-m")
        kind = name.partition("-")[0]
        if kind in {"ledger", "broker"}:
            data = self.folder / kind
            data.mkdir(exist_ok=True)
            lasting = () if kind == "ledger" else ("--appendonly", "no")
            return (*redis_argv(self.socket(kind), data), *lasting)
        if kind == "reaper":
            return (*module, "workers.reaper")
        if kind == "gateway":
            app = f"uvicorn {self._gateway} --factory --log-level warning"
            return (*module, *app.split(), "--port", str(self.ports[name]))
        celery = f"celery -A {self._worker} worker -P prefork -c 1 --loglevel INFO"
        return (*module, *celery.split(), "-n", f"{name}@%h")

    def tend(self) -> None:
        """Start again what has died."""
        for name, child in list(self._children.items()):
            if name not in self._down and not child.is_alive:
                _kill_group(child)
                self.start(name)
                self.restarts += 1

    def kill(self, name: str) -> None:
        """SIGKILL to a process and all its children, as one."""
        _kill_group(self._children[name])
        _reaped(self._children[name])

    def kill_engine(self, name: str) -> bool:
        """SIGKILL to the process of a worker that computes; False where there is none."""
        pid = self.engine(name)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is not None

    def wipe(self, name: str) -> None:
        """Kill a Valkey and take its data, so that it comes back empty."""
        self.kill(name)
        shutil.rmtree(self.folder / name)

    def term(self, name: str) -> None:
        """SIGTERM to one process, as an orchestrator sends it; `tend` leaves it alone then."""
        self._down.add(name)
        os.kill(self._children[name].pid, signal.SIGTERM)

    def ended(self, name: str) -> bool:
        """Whether it has."""
        return not self._children[name].is_alive

    def pid(self, name: str) -> int:
        """Of one process, as it is now."""
        return self._children[name].pid

    def engine(self, name: str) -> int | None:
        """The process of a worker that computes, if there is one now."""
        try:
            children = psutil.Process(self._children[name].pid).children()
        except psutil.NoSuchProcess:
            return None
        return children[0].pid if children else None

    def holders(self) -> dict[str, str]:
        """Jobs in hand: ref by the name of the worker that has it."""
        engines = {self.engine(name): name for name in self.workers}
        found = {}
        for ref in self.redis.zrange(f"{self.settings.key_prefix}:running", 0, -1):
            [told] = self.texts(str(ref), "worker")
            name = engines.get(int(told.rpartition(":")[2] or 0))
            if name is not None:
                found[name] = str(ref)
        return found

    def fields(self, ref: str, *names: str) -> list[int]:
        """Whole numbers of a job's record; 0 where it has none."""
        found = self.redis.hmget(f"{self.settings.key_prefix}:job:{ref}", list(names))
        return [int(value or 0) for value in found]

    def texts(self, ref: str, *names: str) -> list[str]:
        """Texts of a job's record; empty where it has none."""
        found = self.redis.hmget(f"{self.settings.key_prefix}:job:{ref}", list(names))
        return [str(value or "") for value in found]

    def events(self, ref: str) -> list[tuple[str, dict[str, str]]]:
        """A job's stream: (kind, data as JSON) by the stream's id, oldest first."""
        found: Any = self.redis.xrange(f"{self.settings.key_prefix}:events:{ref}")
        return [(str(name), dict(fields)) for name, fields in found]

    def refs(self) -> list[str]:
        """All jobs of the ledger."""
        return [str(r) for r in self.redis.zrange(f"{self.settings.key_prefix}:all:local", 0, -1)]

    def wait(self, what: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        """The first true answer, tending meanwhile. Raises TimeoutError with the ends of logs."""
        over = time.monotonic() + limit_s
        while True:
            try:
                if answer := what():
                    return answer
            except redis.RedisError:  # one of those that this bench killed
                time.sleep(0.05)
            if time.monotonic() > over:
                tails = "\n".join(child.obituary() for child in self._children.values())
                raise TimeoutError(f"nothing within {limit_s:g} s\n{tails}")
            self.tend()
            time.sleep(0.02)

    def log(self, name: str) -> str:
        """All that a process wrote, over its restarts."""
        return (self.folder / "logs" / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything at once."""
        self.redis.close()
        for child in self._children.values():
            _kill_group(child)
            _reaped(child)

    def _serves(self) -> bool:
        try:
            for url in self.urls:
                httpx.get(f"{url}/healthz", timeout=30)
        except httpx.TransportError:
            return False
        present = Roster(self.redis, self.settings).present()
        return sum(worker.healthy for worker in present) >= len(self.workers)


def as_env(settings: Settings) -> dict[str, str]:
    """Settings as a process reads them."""
    values = settings.model_dump(exclude_none=True)
    return {f"TROUPE_{name.upper()}": str(value) for name, value in values.items()}


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def quantiles(values: list[float]) -> dict[str, float | int]:
    """Of seconds: how many, median, 99th percentile (the nearest above) and most."""
    ordered = sorted(values)
    if not ordered:
        return {"count": 0}
    at = -(-99 * len(ordered) // 100) - 1
    return {
        "count": len(ordered),
        "p50": round(ordered[len(ordered) // 2], 3),
        "p99": round(ordered[at], 3),
        "max": round(ordered[-1], 3),
    }


def _kill_group(child: Child) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _reaped(child: Child) -> None:
    while child.is_alive:
        time.sleep(0.005)


def _wait_for_redis(path: Path, limit_s: float = 20.0) -> None:
    client = redis.Redis(unix_socket_path=str(path), socket_timeout=1.0)
    over = time.monotonic() + limit_s
    while True:
        try:
            client.ping()
            client.close()
            return
        except redis.RedisError:
            if time.monotonic() > over:
                raise
            time.sleep(0.05)
