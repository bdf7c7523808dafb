"""Addresses without a key: of a folder by the gateway, of S3 by S3; none outlives its video."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer

from service.app import create_app
from service.deps import House
from tests.service.rig import free_port, request_of
from workers.settings import Settings

FILM = bytes(range(256)) * 10


@pytest.fixture(params=["folder", "s3"])
def guarded(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TestClient]:
    """A gateway that asks for keys, over either store."""
    own: dict[str, Any] = {"auth": "keys"}
    server = None
    if request.param == "s3":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(port=free_port(), verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket="films")
        own["blobs_url"] = "s3://films/root"
    with TestClient(create_app(settings.model_copy(update=own))) as client:
        yield client
    if server is not None:
        server.stop()


def house_of(client: TestClient) -> House:
    found: House = client.app.state.house  # type: ignore[attr-defined]
    return found


def film(client: TestClient, tenant: str = "acme") -> dict[str, str]:
    """A finished video `v` of the tenant; headers of its owner."""
    house = house_of(client)
    house.ledger.submit(f"{tenant}/v", request_of("anna"))
    claim = house.ledger.claim(f"h-{tenant}")
    assert claim is not None
    made = house.blobs.put(f"t/{tenant}/videos/v/out", FILM, ".mp4").key
    assert house.ledger.commit(claim, {"video": made}) == "ok"
    return {"authorization": f"Bearer {house.keys.create(tenant)}"}


def fetch(client: TestClient, url: str, **given: Any) -> httpx.Response:
    """By anybody: from the gateway in this process, or from S3."""
    own = url.startswith("http://testserver/")
    answer: httpx.Response = client.get(url, **given) if own else httpx.get(url, **given)
    return answer


def test_anybody_may_read_it_until_it_is_deleted(guarded: TestClient) -> None:
    owner = film(guarded)
    told = guarded.get("/v1/videos/v/url", headers=owner).json()
    assert told["object"] == "video.url" and told["variant"] == "video"
    found = fetch(guarded, told["url"])
    assert (found.status_code, found.content) == (200, FILM)
    assert found.headers["content-type"] == "video/mp4"
    assert found.headers["cache-control"] == "private, no-cache"
    assert found.headers["content-disposition"] == 'inline; filename="v-video.mp4"'
    part = fetch(guarded, told["url"], headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, FILM[100:200])
    assert guarded.delete("/v1/videos/v", headers=owner).status_code == 200
    # S3 says 403 to signers who may not list the bucket; moto says it to all.
    gone = {404} if told["url"].startswith("http://testserver/") else {403, 404}
    after = fetch(guarded, told["url"])
    assert after.status_code in gone and FILM not in after.content
    assert guarded.get("/v1/videos/v/url", headers=owner).status_code == 404


def test_it_says_when_it_ends_and_ends_then(guarded: TestClient) -> None:
    owner = film(guarded)
    for seconds in (1, 60):
        asked = {"seconds": seconds}
        told = guarded.get("/v1/videos/v/url", headers=owner, params=asked).json()
        terms = parse_qs(urlsplit(told["url"]).query)
        if "X-Amz-Expires" in terms:
            assert terms["X-Amz-Expires"] == [str(seconds)]
        else:
            assert terms["expires"] == [str(told["expires_at"])]
    for wrong in (0, 3601, "x"):
        answer = guarded.get("/v1/videos/v/url", headers=owner, params={"seconds": wrong})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "seconds"


def test_only_who_may_see_the_video_gets_an_address(guarded: TestClient) -> None:
    film(guarded)
    stranger = {"authorization": f"Bearer {house_of(guarded).keys.create('other')}"}
    assert guarded.get("/v1/videos/v/url").status_code == 401
    assert guarded.get("/v1/videos/v/url", headers=stranger).status_code == 404


def test_what_is_not_there_has_no_address(guarded: TestClient) -> None:
    owner = film(guarded)
    for variant, status in (("spritesheet", 409), ("3", 404), ("none", 400)):
        answer = guarded.get("/v1/videos/v/url", headers=owner, params={"variant": variant})
        assert answer.status_code == status


def test_an_address_is_for_nothing_else(settings: Settings) -> None:
    """Neither another tenant's video of the same name nor another file; and no key replaces it."""
    with TestClient(create_app(settings.model_copy(update={"auth": "keys"}))) as client:
        owner, _ = film(client), film(client, "other")
        url = client.get("/v1/videos/v/url", headers=owner).json()["url"]
        assert client.get(url.replace("/acme/", "/other/")).status_code == 403
        assert client.get(url.replace("/v/video", "/v/0")).status_code == 403
        assert client.get(url.partition("?")[0], headers=owner).status_code == 403
        assert client.get(f"{url}0").status_code == 403
        assert client.head(url).headers["content-length"] == str(len(FILM))
