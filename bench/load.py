"""`python -m bench.load`: how much one gateway process takes in, with keys required.

Posts without pictures and polls, over kept connections, in turn with a bare FastAPI route on the
same machine at the same time: the ratio says what the service itself costs, whatever the machine.
Then as many connections as `--crowd` says against a full queue: only 202, 429 and 503 may come.

The last line is a JSON object: submits_per_s, polls_per_s and bare_per_s (each with p50_ms and
p99_ms), submits_to_bare, polls_to_bare, crowd (statuses), rss_growth_mb.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import psutil
import uvloop
from fastapi import FastAPI

from bench.stage import free_port, stage
from service.auth import Keys

BODY = json.dumps({"prompt": "a meadow", "seed": 1, "steps": 2}).encode()


def bare() -> FastAPI:
    """What FastAPI alone can do here: one route that answers at once."""
    app = FastAPI()

    @app.get("/")
    async def nothing() -> dict[str, str]:
        return {}

    return app


def post(key: str) -> bytes:
    """A request for a video."""
    return _head("POST", "/v1/videos", key, BODY) + BODY


def poll(key: str, video_id: str) -> bytes:
    """A look at one."""
    return _head("GET", f"/v1/videos/{video_id}", key)


def _head(method: str, path: str, key: str, body: bytes = b"") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> tuple[int, bytes]:
    """One request over a kept connection: status and body."""
    writer.write(request)
    top = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (line for line in top.lower().split(b"\r\n") if line.startswith(b"content-length:")), b":0"
    )
    return int(top.split()[1]), await reader.readexactly(int(length.partition(b":")[2]))


async def press(
    port: int, request: bytes, connections: int, seconds: float
) -> tuple[Counter[int], list[float]]:
    """Statuses and times of answers, over so many connections at once for so long."""
    statuses: Counter[int] = Counter()
    times: list[float] = []
    end = time.monotonic() + seconds

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (begin := time.monotonic()) < end:
            status, _ = await exchange(reader, writer, request)
            statuses[status] += 1
            times.append(time.monotonic() - begin)
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    return statuses, times


def rate(port: int, request: bytes, connections: int, seconds: float) -> dict[str, Any]:
    """Answers per second, and how long they took."""
    statuses, times = uvloop.run(press(port, request, connections, seconds))
    times.sort()
    return {
        "per_s": round(len(times) / seconds, 1),
        "p50_ms": round(1000 * times[len(times) // 2], 1),
        "p99_ms": round(1000 * times[len(times) * 99 // 100], 1),
        "statuses": dict(statuses),
    }


@contextmanager
def beside() -> Iterator[int]:
    """The bare route as a process; its port."""
    port = free_port()
    command = "uvicorn bench.load:bare --factory --log-level warning --port"
    process = subprocess.Popen([sys.executable, "-m", *command.split(), str(port)])
    try:
        _wait_for(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            uvloop.run(press(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", 1, 0.01))
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def median(rounds: int, measure: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """So many measurements, from slowest to fastest."""
    return sorted((measure() for _ in range(rounds)), key=lambda one: one["per_s"])


def run(rounds: int, seconds: float, connections: int, crowd: int) -> dict[str, Any]:
    """The whole experiment."""
    with stage(gateways=1, workers=0, auth="keys", max_queued=0) as place, beside() as other:
        place.start("gateway-1")
        place.wait(lambda: _answers(place.urls[0]))
        port = place.ports["gateway-1"]
        key = Keys(place.redis, place.settings, required=True).create("acme", "bench")
        _, answer = uvloop.run(_once(port, post(key)))
        video_id = json.loads(answer)["id"]
        gateway = _gateway(port)
        before = gateway.memory_info().rss
        asked = {"submits": (port, post(key)), "polls": (port, poll(key, video_id))}
        asked["bare"] = (other, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        found: dict[str, Any] = {
            name: median(rounds, partial(rate, at, what, connections, seconds))
            for name, (at, what) in asked.items()
        }
        grown = gateway.memory_info().rss - before
        statuses, _ = uvloop.run(press(port, post(key), crowd, seconds))
    return _told(found) | {"crowd": dict(statuses), "rss_growth_mb": round(grown / 1e6, 1)}


def _told(found: dict[str, Any]) -> dict[str, Any]:
    middle = {name: rounds[len(rounds) // 2] for name, rounds in found.items()}
    base = middle["bare"]["per_s"]
    told: dict[str, Any] = {f"{name}_per_s": one for name, one in middle.items()}
    for name in ("submits", "polls"):
        told[f"{name}_to_bare"] = round(middle[name]["per_s"] / base, 3)
        told[f"{name}_spread"] = [one["per_s"] for one in found[name]]
    return told


async def _once(port: int, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = await exchange(reader, writer, request)
    writer.close()
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def _gateway(port: int) -> psutil.Process:
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if str(port) in (process.info["cmdline"] or [])
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--crowd", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="for symmetry: it is always the last")
    asked = parser.parse_args()
    print(json.dumps(run(asked.rounds, asked.seconds, asked.connections, asked.crowd)))


if __name__ == "__main__":
    main()
