"""GET /v1/videos/{id}/events, from its first byte to its last, also from a real process."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from service.deps import House
from service.ledger import Ledger, connect
from service.refs import LOCAL, ref_of
from tests.service.rig import Service, request_of, wait_for
from workers.settings import Settings


@pytest.fixture
def video(house: House) -> str:
    """A job that was started and has ended: three events."""
    ref = ref_of(LOCAL, "v")
    house.ledger.submit(ref, request_of("anna"))
    claim = house.ledger.claim("h")
    assert claim is not None
    house.ledger.fail(claim, "engine_error", "no", retry=False)
    return "v"


def frames(text: str) -> list[dict[str, str]]:
    """Each event's fields, by the standard's rules for one line of data."""
    blocks = [block for block in text.split("\n\n") if "data:" in block]
    return [
        {name: value for name, _, value in (line.partition(": ") for line in block.splitlines())}
        for block in blocks
    ]


def test_the_whole_story(client: TestClient, video: str) -> None:
    answer = client.get(f"/v1/videos/{video}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    found = frames(answer.text)
    assert [one["event"] for one in found] == ["queued", "started", "failed"]
    assert [json.loads(one["data"]).get("code") for one in found] == [None, None, "engine_error"]


def test_the_rest_of_it_and_then_nothing(client: TestClient, video: str) -> None:
    path = f"/v1/videos/{video}/events"
    ids = [one["id"] for one in frames(client.get(path).text)]
    by_header = client.get(path, headers={"last-event-id": ids[0]}, params={"after": ids[1]})
    assert [one["id"] for one in frames(by_header.text)] == ids[1:]
    by_query = client.get(path, params={"after": ids[1]})
    assert [one["id"] for one in frames(by_query.text)] == ids[2:]
    assert client.get(path, params={"after": ids[2]}).status_code == 204


@pytest.mark.parametrize(
    ("headers", "query", "param"),
    [({"last-event-id": "x"}, "", "Last-Event-ID"), ({}, "x", "after"), ({}, "1" * 65, "after")],
)
def test_what_is_no_id_is_told(
    client: TestClient, video: str, headers: dict[str, str], query: str, param: str
) -> None:
    answer = client.get(f"/v1/videos/{video}/events", params={"after": query}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_an_unknown_video_has_no_events(client: TestClient) -> None:
    assert client.get("/v1/videos/nobody/events").status_code == 404


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    service = Service(settings, tmp_path)
    try:
        service.start("gateway")
        service.wait_listening()
        yield service
    finally:
        service.close()


def test_a_gateway_that_leaves_lets_its_listeners_go(
    service: Service, settings: Settings
) -> None:
    job = httpx.post(f"{service.url}/v1/videos", data={"prompt": "a field"}, timeout=60).json()
    heard: list[str] = []

    def listen() -> None:
        url = f"{service.url}/v1/videos/{job['id']}/events"
        with httpx.stream("GET", url, timeout=60) as answer:
            heard.extend(answer.iter_lines())
        heard.append("end")

    thread = threading.Thread(target=listen)
    thread.start()
    wait_for(lambda: "event: queued" in heard)
    assert Ledger(connect(settings), settings).claim("h") is not None
    wait_for(lambda: "event: started" in heard)
    assert service.stop("gateway", signal.SIGTERM, limit_s=20) in {0, -signal.SIGTERM}
    thread.join(20)
    assert heard[-1] == "end"
    assert "Traceback" not in service.log("gateway")
