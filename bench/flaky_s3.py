"""moto's S3 server in this process, with weather: while it storms, answers are errors, cut short,
or do not come; in the doldrums some objects come a few bytes at a time.

    with sky() as weather:           the environment leads every boto3 client there
        weather.storm = True
        weather.slow = digest        of what has that in its name
"""

import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

ACCESS = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "benchbench",
    "AWS_DEFAULT_REGION": "us-east-1",
}
ERROR = b"<Error><Code>InternalError</Code><Message>a storm</Message></Error>"
SLOW_BYTES, SLOW_S = 4096, 0.05
HANGS_S = 25.0  # more than a client waits for an answer (`engine.stores.S3Store`)

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Weather:
    """A WSGI app around another. storm: whether it storms; told: of how many requests it took.
    slow: what is in the names of objects that come slowly; empty: none do."""

    def __init__(self, app: App, seed: int = 0) -> None:
        self.storm = False
        self.slow = ""
        self.told = {"error": 0, "cut": 0, "hang": 0}
        self._app, self._rng, self._lock = app, random.Random(seed), threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """One request."""
        how = self._drawn() if self.storm else ""
        if how == "hang":
            time.sleep(HANGS_S)
        if how in {"error", "hang"}:
            start("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [ERROR]
        found = self._app(environ, start)
        if self.slow and self.slow in environ["PATH_INFO"] and environ["REQUEST_METHOD"] == "GET":
            return self._slowly(b"".join(found))
        return _cut(found) if how == "cut" else found

    def _slowly(self, content: bytes) -> Iterator[bytes]:
        for at in range(0, len(content), SLOW_BYTES):
            if self.slow:
                time.sleep(SLOW_S)
            yield content[at : at + SLOW_BYTES]

    def _drawn(self) -> str:
        with self._lock:
            how = self._rng.choices(["", "error", "cut", "hang"], [50, 35, 13, 2])[0]
            if how:
                self.told[how] += 1
        return how


def _cut(found: Iterable[bytes]) -> Iterator[bytes]:
    """Half of it, and the end of the connection."""
    content = b"".join(found)
    yield content[: len(content) // 2]
    raise ConnectionResetError("a storm")


class Quiet(WSGIRequestHandler):
    """Says nothing of requests."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Nothing."""


@contextmanager
def sky(seed: int = 0) -> Iterator[tuple[Weather, Mapping[str, str]]]:
    """The server's weather, and the environment that leads other processes to it."""
    weather = Weather(DomainDispatcherApplication(create_backend_app), seed)
    server = make_server("127.0.0.1", 0, weather, threaded=True, request_handler=Quiet)
    env = {**ACCESS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}
    thread = threading.Thread(target=server.serve_forever, name="s3", daemon=True)
    before = {name: os.environ.get(name) for name in env}
    thread.start()
    os.environ.update(env)
    try:
        yield weather, env
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.shutdown()
        server.server_close()
        thread.join()
