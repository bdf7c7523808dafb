"""`troupe up`: the service and the studio page on this machine, until Ctrl-C."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from troupe.processes import ChildFailed, Supervisor
from troupe.stack import Plan, Stack, StackError, Stopped
from troupe.terminal import err, fail, out, waiting

MODEL = Path("models/miniature")
STATE = Path(".troupe")


def up(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of the gateway; 0 takes any free one.")] = 8000,
    model: Annotated[Path, typer.Option(help="Model folder.")] = MODEL,
    state: Annotated[Path, typer.Option(help="Folder for jobs, videos and logs.")] = STATE,
    encoders: Annotated[
        int,
        typer.Option(
            min=0,
            help="Workers that only encode, on the CPU; the one that makes videos then holds no"
            " text encoder and no VLM.",
        ),
    ] = 0,
) -> None:
    """Serve until Ctrl-C: gateway with the studio page, one worker, reaper, courier, and Redis.

    With REDIS_URL set, that Redis is used; else a bundled one, whose data stay in the state folder.
    """
    plan = Plan(host, port, state, model, own_redis_url(), encoders)
    stop = stop_on_signals()
    with Supervisor(tell_restart) as supervisor:
        try:
            stack = start(plan, supervisor, stop)
            out.print(f"Troupe is ready. Studio page: [bold]{stack.url}/[/]   (Ctrl-C stops it)")
            while not stop.wait(0.5):
                supervisor.check()
        except ChildFailed as error:
            fail(str(error), "troupe doctor")
        except Stopped:
            pass
        err.print("Stopping; a job in hand may take a few seconds to be handed back.")
    err.print("Stopped.")


def start(plan: Plan, supervisor: Supervisor, stop: threading.Event) -> Stack:
    """Start the stack and wait, with words, until it is ready. Ends the command on failure.

    Raises Stopped when `stop` is set meanwhile, ChildFailed when a process will not stay up.
    """
    from troupe.doctor import own_redis

    if plan.redis_url and (found := own_redis(plan.redis_url)).level == "wrong":
        fail(f"Redis: {found.detail}", found.remedy)
    try:
        with waiting("Starting the service") as tell:
            stack = Stack.start(plan, supervisor)
            stack.wait_ready(lambda missing: tell(f"Starting: {missing}"), stop.is_set)
    except StackError as error:
        fail(str(error), error.remedy)
    return stack


def own_redis_url() -> str | None:
    """The Redis that the environment names, if any, under the names that the service reads."""
    return os.environ.get("TROUPE_REDIS_URL") or os.environ.get("REDIS_URL")


def stop_on_signals() -> threading.Event:
    """An event that SIGINT or SIGTERM sets; a second signal interrupts whatever still runs."""
    stop = threading.Event()

    def handler(_signum: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handler)
    return stop


def tell_restart(obituary: str) -> None:
    """Report a child that died and is about to be started again."""
    err.print("Restarting:", style="yellow", end=" ")
    err.print(obituary, markup=False)
