"""Clients that behave like the openai SDK over several gateways, and write down all they see.

A request that gets no answer, or 408, 429 or 5xx, is sent again to the next gateway, with the same
body and the same Idempotency-Key if it has one. Every answer is one event of an append-only
history (JSON lines), which `bench.verdict` judges.
"""

import hashlib
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from bench.scripted import end, seen

RETRIED = {408, 429, 500, 502, 503, 504}
PATIENCE_S = 180.0  # for one answer
JOB_LIMIT_S = 400.0  # for one job
POLL_S = 0.3


@dataclass(frozen=True)
class Order:
    """One job as a client wants it. `cancel_s`: after so many seconds it changes its mind."""

    number: int
    seed: int
    steps: int
    step_ms: int
    store_ms: int = 0
    picture: bool = False
    key: str = ""
    cancel_s: float | None = None

    @property
    def prompt(self) -> str:
        """Tells the engine its script, and the ledger's reader which job this is."""
        who = "@anna waves" if self.picture else "somebody waves"
        return f"{who} step_ms={self.step_ms} store_ms={self.store_ms} order={self.number}"

    @property
    def body(self) -> dict[str, Any]:
        """What httpx needs to send it."""
        fields = {
            "prompt": self.prompt, "seed": str(self.seed), "steps": str(self.steps),
            "size": "32x32", "num_frames": "5",
        }  # fmt: skip
        if not self.picture:
            return {"json": fields}
        image = io.BytesIO()
        _face(self.seed).save(image, "PNG")
        return {"data": fields, "files": [("images", ("anna.png", image.getvalue(), "image/png"))]}

    @property
    def end(self) -> str:
        """What its video must show."""
        return end(self.seed, self.steps, [_face(self.seed).tobytes()] if self.picture else [])


def _face(seed: int) -> Image.Image:
    return Image.new("RGB", (32, 32), (seed % 251, seed // 251 % 251, 99))


class History:
    """Append-only: events as JSON lines in a file, in the order in which they were seen."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()
        self.ended = 0

    def note(self, what: str, **fields: Any) -> None:
        """One event. `what`: accepted, refused, poll, content, late, scrape, fault, gave_up."""
        line = json.dumps({"at": time.time(), "what": what, **fields})
        with self._lock:
            self._file.write(line + "\n")
            self.ended += what in {"content", "failed"}

    def close(self) -> None:
        """Nothing more will come."""
        self._file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """All events."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Web:
    """Several gateways as one. One per thread; `posting` counts bodies on their way, by gateway."""

    def __init__(self, urls: Sequence[str], history: History, posting: Counter[str]) -> None:
        self._urls = list(urls)
        self._clients = {url: httpx.Client(base_url=url, timeout=30) for url in urls}
        self._history = history
        self._posting = posting

    def send(self, method: str, path: str, **given: Any) -> httpx.Response:
        """The first answer that is not to be tried again. Raises TimeoutError.

        An answer of 5xx goes into the history: a client saw it.
        """
        over, pause = time.monotonic() + PATIENCE_S, 0.1
        while time.monotonic() < over:
            url = random.choice(self._urls)
            if method == "POST":
                self._posting[url] += 1
            try:
                answer = self._clients[url].request(method, path, **given)
                if answer.status_code not in RETRIED:
                    return answer
                code = answer.json()["error"]["code"]
                self._history.note("refused", status=answer.status_code, code=code, path=path)
            except (httpx.TransportError, ValueError) as error:
                self._history.note("cut", error=type(error).__name__, path=path)
            finally:
                if method == "POST":
                    self._posting[url] -= 1
            time.sleep(pause * random.uniform(0.75, 1.0))
            pause = min(2 * pause, 2.0)
        raise TimeoutError(f"{method} {path}: no answer in {PATIENCE_S:g} s")

    def close(self) -> None:
        """Give the connections back."""
        for client in self._clients.values():
            client.close()


class Customer:
    """Sees to one order after the other."""

    def __init__(self, web: Web, history: History) -> None:
        self._web = web
        self._history = history

    def see_to(self, order: Order) -> None:
        """From the POST to the bytes."""
        headers = {"idempotency-key": order.key} if order.key else {}
        answer = self._web.send("POST", "/v1/videos", headers=headers, **order.body)
        if answer.status_code != 202:
            self._history.note("rejected", order=order.number, status=answer.status_code)
            return
        video = answer.json()["id"]
        self._history.note("accepted", order=order.number, id=video, key=order.key)
        status = self._poll(order, video)
        if status == "completed":
            self.fetch(video, "content", order.end)
        elif status:
            self._history.note("failed", id=video)

    def _poll(self, order: Order, video: str) -> str:
        began = time.monotonic()
        cancel = order.cancel_s
        while time.monotonic() - began < JOB_LIMIT_S:
            if cancel is not None and time.monotonic() - began >= cancel:
                cancelled = self._web.send("POST", f"/v1/videos/{video}/cancel")
                self._history.note("cancelled", id=video, status=cancelled.status_code)
                cancel = None
            found = self._web.send("GET", f"/v1/videos/{video}")
            if found.status_code != 200:
                self._history.note("poll", id=video, status=str(found.status_code), progress=-1)
                return ""
            told = found.json()
            error = (told["error"] or {}).get("code", "")
            self._history.note(
                "poll", id=video, status=told["status"], progress=told["progress"],
                attempts=told["attempts"], error=error,
            )  # fmt: skip
            if told["status"] in {"completed", "failed"}:
                return str(told["status"])
            time.sleep(POLL_S * random.uniform(0.7, 1.3))
        self._history.note("gave_up", id=video)
        return ""

    def fetch(self, video: str, what: str, end: str = "") -> None:
        """Read the video as a whole and note its digest; and what its thumbnail shows."""
        path = f"/v1/videos/{video}/content"
        answer = self._web.send("GET", path)
        told: dict[str, Any] = {"status": answer.status_code, "etag": answer.headers.get("etag")}
        told["sha256"] = hashlib.sha256(answer.content).hexdigest()
        if end:
            thumbnail = self._web.send("GET", path, params={"variant": "thumbnail"}).content
            told["right"] = seen(thumbnail) == end
        self._history.note(what, id=video, **told)


class Crowd:
    """As many customers at once as threads, over a list of orders."""

    def __init__(self, urls: Sequence[str], history: History, threads: int) -> None:
        self._urls = urls
        self._history = history
        self._lock = threading.Lock()
        self._orders: list[Order] = []
        self.posting: Counter[str] = Counter()
        self.trouble: list[BaseException] = []
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def begin(self, orders: Sequence[Order]) -> None:
        """Start all threads."""
        self._orders = list(orders)[::-1]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Nobody begins with another order."""
        with self._lock:
            self._orders.clear()

    @property
    def busy(self) -> bool:
        """Whether one still runs. Raises what a customer raised."""
        alive = any(thread.is_alive() for thread in self._threads)  # first: it may end just now
        if self.trouble:
            raise self.trouble[0]
        return alive

    def _work(self) -> None:
        web = Web(self._urls, self._history, self.posting)
        customer = Customer(web, self._history)
        try:
            while order := self._next():
                customer.see_to(order)
        except (TimeoutError, httpx.HTTPError, LookupError, ValueError) as error:
            self.trouble.append(error)  # raised where the bench asks
        finally:
            web.close()

    def _next(self) -> Order | None:
        with self._lock:
            return self._orders.pop() if self._orders else None


