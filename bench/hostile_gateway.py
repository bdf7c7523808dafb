"""`uvicorn bench.hostile_gateway:create_app --factory`: the product's gateway in a room without
windows. It asks no DNS but the bench's own, and can connect to nothing but the bench; what it
tries is written down, a line `HOST PORT` each, in the file that BENCH_CONNECTS names.
"""

import errno
import os
import socket
import sys
from itertools import cycle
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from bench.hostile_addresses import NAMES
from service import app


def watched(log: Path, allowed: str) -> None:
    """From now on. allowed: the one HOST:PORT that may be connected to."""

    def look(event: str, given: tuple[Any, ...]) -> None:
        if event != "socket.connect" or not isinstance(given[1], tuple):
            return  # a Redis on a Unix socket
        host, port = given[1][:2]
        with log.open("a") as file:
            file.write(f"{host} {port}\n")
        if f"{host}:{port}" != allowed:
            raise OSError(errno.ENETUNREACH, "a room without windows")

    sys.addaudithook(look)


class Names:
    """The bench's DNS, in place of `socket.getaddrinfo`."""

    def __init__(self) -> None:
        self._answers = {name: cycle(turns) for name, turns in NAMES.items()}
        self._numeric = socket.getaddrinfo

    def __call__(self, host: Any, port: Any, *rest: Any, **more: Any) -> list[Any]:
        """Raises OSError for every name that it does not know."""
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name not in self._answers:
            return list(self._numeric(host, port, type=socket.SOCK_STREAM, flags=NUMERIC))
        found = [
            self._numeric(address, port, type=socket.SOCK_STREAM, flags=NUMERIC)
            for address in next(self._answers[name])
        ]
        return [one for answer in found for one in answer]


NUMERIC = socket.AI_NUMERICHOST


def create_app() -> FastAPI:
    """The application."""
    watched(Path(os.environ["BENCH_CONNECTS"]), os.environ["BENCH_STRANGER"])
    socket.getaddrinfo = Names()  # type: ignore[assignment]
    return app.create_app()
