"""The clients of the benches: they retry as an SDK does, and write down what they see."""

import json
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench.client import Crowd, History, Order, Web, read_history
from bench.scripted import end
from bench.stage import free_port


class Moody(BaseHTTPRequestHandler):
    """503 to the first two requests, then 200 with the key that it was sent."""

    seen: list[str | None] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.headers["idempotency-key"])
        body = json.dumps({"error": {"code": "ledger_unavailable"}}).encode()
        self.send_response(503 if len(self.seen) < 3 else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Not to the terminal."""


@pytest.fixture
def moody() -> Iterator[str]:
    Moody.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    found = History(tmp_path / "history.jsonl")
    yield found
    found.close()


def test_a_request_is_sent_again_with_its_key(moody: str, history: History, tmp_path: Path) -> None:
    posting: Counter[str] = Counter()
    web = Web([moody, f"http://127.0.0.1:{free_port()}"], history, posting)
    answer = web.send("POST", "/v1/videos", headers={"idempotency-key": "k"}, json={})
    web.close()
    assert answer.status_code == 200
    assert Moody.seen == ["k", "k", "k"]
    assert set(posting.values()) == {0}
    noted = Counter(event["what"] for event in read_history(tmp_path / "history.jsonl"))
    assert noted["refused"] == 2


def test_an_order_carries_its_script_and_its_number() -> None:
    order = Order(7, seed=3, steps=4, step_ms=20)
    assert order.body["json"]["prompt"].endswith("step_ms=20 store_ms=0 order=7")
    assert order.end == end(3, 4)
    pictured = Order(7, seed=3, steps=4, step_ms=20, picture=True)
    assert pictured.end != order.end
    [(field, (_, content, kind))] = pictured.body["files"]
    assert (field, kind, content[:4]) == ("images", "image/png", b"\x89PNG")


def test_what_a_customer_raises_is_raised_where_the_bench_asks(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.client.PATIENCE_S", 0.2)
    crowd = Crowd([f"http://127.0.0.1:{free_port()}"], history, threads=1)
    crowd.begin([Order(1, seed=1, steps=1, step_ms=0)])
    with pytest.raises(TimeoutError, match="no answer"):
        while crowd.busy:
            pass


def test_nobody_begins_after_the_end(history: History) -> None:
    crowd = Crowd(["http://127.0.0.1:1"], history, threads=0)
    crowd.begin([Order(1, seed=1, steps=1, step_ms=0)])
    crowd.finish()
    assert crowd._next() is None
