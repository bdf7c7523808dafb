"""The bytes: which variant when, in part and whole, and with which headers."""

import pytest
from fastapi.testclient import TestClient

from service.deps import House
from service.errors import RequestError
from service.jobs import Claim
from service.routes.content import parse_range
from tests.service.rig import picture, request_of

FILM = bytes(range(256)) * 10


@pytest.fixture
def running(house: House) -> Claim:
    """A job in hand, with one reference."""
    key = house.blobs.put("t/local/videos/v/in", picture(), ".png").key
    references = [{"name": "anna", "key": key}]
    house.ledger.submit("local/v", {**request_of("anna"), "references": references})
    claim = house.ledger.claim("h")
    assert isinstance(claim, Claim)
    return claim


@pytest.fixture
def done(running: Claim, house: House) -> str:
    keys = {
        "video": house.blobs.put("t/local/videos/v/out", FILM, ".mp4").key,
        "thumbnail": house.blobs.put("t/local/videos/v/out", b"jpeg", ".jpg").key,
        "spritesheet": house.blobs.put("t/local/videos/v/out", b"png", ".png").key,
    }
    assert house.ledger.commit(running, keys) == "ok"
    return "/v1/videos/v/content"


def test_the_video_whole(client: TestClient, done: str) -> None:
    answer = client.get(done)
    assert (answer.status_code, answer.content) == (200, FILM)
    assert answer.headers["content-type"] == "video/mp4"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(FILM))
    assert answer.headers["content-disposition"] == 'inline; filename="v-video.mp4"'


@pytest.mark.parametrize(
    ("variant", "body", "kind"),
    [("thumbnail", b"jpeg", "image/jpeg"), ("spritesheet", b"png", "image/png")],
)
def test_the_pictures(client: TestClient, done: str, variant: str, body: bytes, kind: str) -> None:
    answer = client.get(done, params={"variant": variant})
    assert (answer.content, answer.headers["content-type"]) == (body, kind)


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=2500-", 2500, 2560),
     ("bytes=-60", 2500, 2560), ("bytes=2000-99999", 2000, 2560)],
)  # fmt: skip
def test_a_browser_can_seek(
    client: TestClient, done: str, wanted: str, start: int, end: int
) -> None:
    answer = client.get(done, headers={"range": wanted})
    assert (answer.status_code, answer.content) == (206, FILM[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/2560"
    assert answer.headers["content-length"] == str(end - start)


def test_a_range_past_the_end_is_told(client: TestClient, done: str) -> None:
    answer = client.get(done, headers={"range": "bytes=2560-"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (416, "range_not_satisfiable")


@pytest.mark.parametrize("wanted", [None, "bytes=0-1,5-9", "lines=1-2", "bytes=-", "bytes=9-5"])
def test_what_is_no_single_range_means_the_whole(wanted: str | None) -> None:
    assert parse_range(wanted, 100) is None


def test_no_last_bytes_are_no_range() -> None:
    with pytest.raises(RequestError):
        parse_range("bytes=-0", 100)


def test_who_knows_it_is_told_so_and_asks_again_each_time(
    client: TestClient, house: House, done: str
) -> None:
    first = client.get(done)
    assert first.headers["cache-control"] == "private, no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        answer = client.get(done, headers={"if-none-match": known})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == tag
    assert client.get(done, headers={"if-none-match": '"other"'}).content == FILM
    client.delete("/v1/videos/v")
    assert client.get(done, headers={"if-none-match": tag}).status_code == 404


def test_head_has_no_body(client: TestClient, done: str) -> None:
    answer = client.head(done)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(FILM))


def test_before_the_end_there_is_nothing_but_previews(
    client: TestClient, running: Claim, house: House
) -> None:
    for variant in ("video", "thumbnail", "spritesheet", "preview"):
        answer = client.get("/v1/videos/v/content", params={"variant": variant})
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "video_not_ready"
        assert answer.headers["x-should-retry"] == "false"
    key = house.blobs.put(f"t/local/videos/v/{running.token}/preview", b"early", ".jpg").key
    house.ledger.beat(running, 10, preview=key)
    answer = client.get("/v1/videos/v/content", params={"variant": "preview"})
    assert (answer.content, answer.headers["content-type"]) == (b"early", "image/jpeg")
    assert answer.headers["cache-control"] == "no-store"
    house.ledger.commit(running, {"video": "k"})
    answer = client.get("/v1/videos/v/content", params={"variant": "preview"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "video_not_ready")


def test_a_failed_video_has_no_content_and_says_why(
    client: TestClient, running: Claim, house: House
) -> None:
    house.ledger.fail(running, "engine_error", "it broke", retry=False)
    answer = client.get("/v1/videos/v/content")
    assert answer.status_code == 409 and "it broke" in answer.json()["error"]["message"]


def test_references_can_be_seen(client: TestClient, running: Claim) -> None:
    answer = client.get("/v1/videos/v/references/anna")
    assert (answer.content, answer.headers["content-type"]) == (picture(), "image/png")
    for name in ("bob", "../anna", "%2e%2e"):
        assert client.get(f"/v1/videos/v/references/{name}").status_code == 404


def test_an_unknown_variant_is_told(client: TestClient, done: str) -> None:
    answer = client.get(done, params={"variant": "gif"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "variant")


def test_a_blob_that_vanished_is_not_found(client: TestClient, done: str, house: House) -> None:
    house.blobs.delete("t/local/videos/v")
    assert client.get(done).status_code == 404


def test_a_number_is_a_candidates_video(client: TestClient, house: House) -> None:
    house.ledger.submit("local/v", request_of())
    claim = house.ledger.claim("h")
    assert claim is not None
    assert client.get("/v1/videos/v/content?variant=0").status_code == 409
    keys = [house.blobs.put("t/local/videos/v/out", data, ".mp4").key for data in (b"a", b"b")]
    made = [{"video": key} for key in keys]
    house.ledger.commit(claim, {"video": keys[1], "candidates": made})
    got = {name: client.get(f"/v1/videos/v/content?variant={name}") for name in ("video", "0", "1")}
    assert {name: answer.content for name, answer in got.items()} == {
        "video": b"b", "0": b"a", "1": b"b",
    }  # fmt: skip
    assert client.get("/v1/videos/v/content?variant=2").status_code == 404
    for wrong in ("-1", "x", "1.5", "²"):
        answer = client.get("/v1/videos/v/content", params={"variant": wrong})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "variant")
