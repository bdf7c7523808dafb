"""Strangers at the videos' routes: quota before pictures, nobody else's jobs, receipts."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from service.app import create_app
from service.deps import House
from service.errors import LedgerDown, QueueFull
from service.jobs import Claim
from service.ledger import connect
from service.tenants import Tenants
from tests.service.receiver import Receiver, receiving, reply
from tests.service.rig import keys_of, picture
from workers.settings import Settings

BAD = b"no picture at all"


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    """The gateway, requiring keys."""
    app = create_app(settings.model_copy(update={"auth": "keys"}))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


Poster = Callable[..., Response]


@pytest.fixture
def post(client: TestClient, house: House) -> Poster:
    """POST /v1/videos as acme, or as another tenant."""
    headers: dict[str, dict[str, str]] = {}

    def send(tenant: str = "acme", data: bytes | None = None, **fields: Any) -> Response:
        if tenant not in headers:
            headers[tenant] = {"Authorization": f"Bearer {house.keys.create(tenant)}"}
        client.headers.update(headers[tenant])
        files = {"images": ("anna.png", data or picture(), "image/png")}
        return client.post("/v1/videos", data={"prompt": "@anna waves", **fields}, files=files)

    return send


def quota(house: House, settings: Settings, tenant: str = "acme") -> tuple[float, float]:
    """GPU-milliseconds reserved and settled."""
    found = connect(settings).hmget(f"{settings.key_prefix}:quota:{tenant}", "reserved", "settled")
    reserved, settled = (float(value or 0) for value in found)
    return reserved, settled


def bound(settings: Settings, **bounds: int) -> None:
    Tenants(connect(settings), settings).set("acme", **bounds)


def test_a_job_reserves_its_cost_and_tells_what_is_left(
    post: Poster, house: House, settings: Settings
) -> None:
    bound(settings, requests_per_minute=10, gpu_seconds_per_hour=100)
    answer = post()
    assert answer.status_code == 202, answer.text
    assert answer.headers["ratelimit-policy"].startswith('"requests";q=10;w=60, "gpu";q=100;')
    assert answer.headers["ratelimit"].startswith('"requests";r=9;t=6')
    ref = f"acme/{answer.json()['id']}"
    assert house.ledger.read(ref).fields["cost"] == "0.002" and quota(house, settings) == (2, 0)


def test_quota_is_asked_before_a_picture_is_looked_at(
    post: Poster, house: House, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(settings, requests_per_minute=1)
    assert post().status_code == 202
    monkeypatch.setattr(house.intake, "clean", None)
    answer = post(data=BAD)
    assert answer.status_code == 429, answer.text
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answer.headers["retry-after"]) <= 60
    assert answer.headers["ratelimit"] == '"requests";r=0;t=60'
    assert post("zeta", prompt="@anna waves").status_code != 429  # another tenant's is its own


def test_more_than_the_whole_quota_is_no_question_of_waiting(
    post: Poster, settings: Settings
) -> None:
    bound(settings, gpu_seconds_per_hour=0)
    answer = post()
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "quota_too_small")


def test_whatever_fails_afterwards_gives_it_back(
    post: Poster, house: House, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert post(data=BAD).status_code == 400
    assert quota(house, settings) == (0, 0)

    def full(*_: Any) -> str:
        raise QueueFull("full")

    def bug(*_: Any) -> str:
        raise RuntimeError("bug")

    for fault, status in ((full, 503), (bug, 500)):
        monkeypatch.setattr(house.ledger, "submit", fault)
        assert post().status_code == status
        assert quota(house, settings) == (0, 0)
    kept = [key for key in keys_of(settings) if "reserv" in key or "job:" in key]
    assert kept == []


def test_a_ledger_that_falls_silent_hides_no_other_fault(
    post: Poster, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any) -> bool:
        raise LedgerDown("down")

    monkeypatch.setattr(house.limits, "release", down)
    assert post(data=BAD).status_code == 400


def test_what_waits_costs_nothing_when_cancelled(
    post: Poster, client: TestClient, house: House, settings: Settings
) -> None:
    made = post().json()["id"]
    assert client.post(f"/v1/videos/{made}/cancel").status_code == 200
    assert quota(house, settings) == (0, 0)


def test_what_was_worked_on_is_charged_when_deleted(
    post: Poster, client: TestClient, house: House, settings: Settings
) -> None:
    made = post().json()["id"]
    claim = house.ledger.claim("h")
    assert isinstance(claim, Claim)
    connect(settings).hincrby(f"{settings.key_prefix}:job:{claim.ref}", "claimed_ms", -5000)
    assert client.delete(f"/v1/videos/{made}").status_code == 200
    reserved, settled = quota(house, settings)
    assert reserved == 0 and 5000 <= settled < 15_000
    assert not [key for key in keys_of(settings) if f"reservation:acme/{made}" in key]


def test_a_deletion_leaves_a_receipt_that_names_nobody(
    post: Poster, client: TestClient, house: House, settings: Settings
) -> None:
    made = post().json()["id"]
    client.delete(f"/v1/videos/{made}")
    (receipt,) = house.audit.entries(name=f"acme/{made}")
    assert (receipt.action, receipt.detail) == ("video.deleted", {"was": "queued"})
    assert receipt.actor == client.headers["Authorization"].split("_")[1]
    assert house.audit.verify().fault == ""
    assert not any(made in text for text in house.audit._texts())


def test_anothers_video_is_no_video(post: Poster, client: TestClient, house: House) -> None:
    mine = post("acme").json()["id"]
    theirs = post("zeta").json()["id"]  # from here on the client is zeta's
    for method, tail in (("GET", ""), ("POST", "/cancel"), ("DELETE", ""), ("GET", "/content")):
        answers = [client.request(method, f"/v1/videos/{name}{tail}") for name in (mine, "none")]
        assert [answer.status_code for answer in answers] == [404, 404]
        assert answers[0].text.replace(mine, "none") == answers[1].text
    assert [one["id"] for one in client.get("/v1/videos").json()["data"]] == [theirs]
    assert client.get("/v1/videos", params={"after": mine}).status_code == 404
    assert house.ledger.read(f"acme/{mine}").state == "queued"


def test_a_picture_is_fetched_once_there_is_quota_for_it(settings: Settings) -> None:
    image = reply(200, body=picture())
    with receiving(Receiver(image)) as server:
        own = settings.model_copy(update={"fetch_hosts": f"localhost:{server.port}"})
        Tenants(connect(settings), settings).set("local", requests_per_minute=2)
        url = f"http://localhost:{server.port}/a.png"
        body = {"prompt": "@a waves", "subjects": [{"name": "a", "image_url": url}]}
        with TestClient(create_app(own)) as client:
            house: House = client.app.state.house  # type: ignore[attr-defined]
            first = client.post("/v1/videos", json=body, headers={"idempotency-key": "k"})
            assert first.status_code == 202 and len(server.seen) == 1
            again = client.post("/v1/videos", json=body, headers={"idempotency-key": "k"})
            assert again.json()["id"] == first.json()["id"] and len(server.seen) == 1

            server.answer = reply(404)
            lost = client.post("/v1/videos", json=body, headers={"idempotency-key": "l"})
            assert (lost.status_code, lost.json()["error"]["code"]) == (400, "address_refused")
            (reserved, _), standing = quota(house, settings, "local"), len(server.seen)
            assert reserved == pytest.approx(1000 * cost_of(house, "local", first.json()["id"]))
            server.answer = image
            refused = client.post("/v1/videos", json=body, headers={"idempotency-key": "l"})
            assert refused.status_code == 429 and len(server.seen) == standing
            assert house.ledger.books().submitted == 1


def cost_of(house: House, tenant: str, video_id: str) -> float:
    """What the job's record says that it is estimated at, in GPU-seconds."""
    return float(house.ledger.read(f"{tenant}/{video_id}").fields["cost"])
