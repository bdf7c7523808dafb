"""Edits, remixes, extensions over HTTP, and the request that waits."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from service.deps import House
from service.jobs import Claim
from service.ledger import Ledger
from tests.service.rig import picture, request_of, wait_for
from tests.service.test_sources import finished, grey


def film(num: int = 9) -> dict[str, tuple[str, bytes, str]]:
    return {"video": ("a.mp4", grey(num).mp4(), "video/mp4")}


def taken(answer: Response, ledger: Ledger) -> dict[str, Any]:
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/videos/{answer.json()['id']}"
    return ledger.read("local/" + answer.json()["id"]).request


def test_an_edit_of_a_file(client: TestClient, ledger: Ledger) -> None:
    data = {"prompt": "a desert", "strength": "0.5"}
    answer = client.post("/v1/videos/edits", data=data, files=film(9))
    request = taken(answer, ledger)
    assert request["edit"]["strength"] == 0.5 and request["spec"]["num_frames"] == 9
    assert answer.json()["seconds"] == "1.125"


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"prompt": "a desert", "video": {"id": "v"}}},
        {"data": {"prompt": "a desert", "video[id]": "v"}},
        {"data": {"prompt": "a desert", "video": '{"id": "v"}'}},
    ],
)
def test_an_edit_of_ones_own_video(
    client: TestClient, house: House, ledger: Ledger, sent: dict[str, Any]
) -> None:
    finished(house)
    answer = client.post("/v1/videos/edits", **sent)
    request = taken(answer, ledger)
    assert answer.json()["remixed_from_video_id"] == "v"
    longer = {"prompt": "a desert", "seconds": 1, "video": {"id": "v"}}
    extended = client.post("/v1/videos/extensions", json=longer)
    assert extended.json()["remixed_from_video_id"] == "v"
    assert request["spec"]["num_frames"] == 17 and request["references"] == []


def test_a_remix_says_of_what(client: TestClient, house: House, ledger: Ledger) -> None:
    finished(house, "anna")
    answer = client.post("/v1/videos/v/remix", json={"prompt": "@anna spins"})
    request = taken(answer, ledger)
    video = answer.json()
    assert video["remixed_from_video_id"] == "v"
    assert [one["name"] for one in video["subjects"]] == ["anna"]
    assert request["references"][0]["key"].startswith(f"t/local/videos/{video['id']}/")
    assert client.post("/v1/videos/none/remix", json={"prompt": "p"}).status_code == 404


def test_the_source_may_go_before_what_was_made_of_it(
    client: TestClient, house: House, ledger: Ledger
) -> None:
    finished(house, "anna")
    request = taken(client.post("/v1/videos/v/remix", json={"prompt": "@anna spins"}), ledger)
    assert client.delete("/v1/videos/v").status_code == 200
    for key in (request["edit"]["key"], request["references"][0]["key"]):
        assert house.blobs.size(key) > 0


def test_an_extension_is_as_long_as_both(client: TestClient, ledger: Ledger) -> None:
    data = {"prompt": "a field", "seconds": "2"}
    answer = client.post("/v1/videos/extensions", data=data, files=film(9))
    request = taken(answer, ledger)
    assert request["frames"] == 25 and request["edit"]["keep_frames"] == 9
    assert (answer.json()["num_frames"], answer.json()["seconds"]) == (25, "3.125")


def test_a_refused_source_leaves_nothing(client: TestClient, ledger: Ledger, house: House) -> None:
    bad = {"video": ("a.mp4", picture(), "video/mp4")}
    answer = client.post("/v1/videos/edits", data={"prompt": "p"}, files=bad)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_video", "video")
    finished(house)
    house.ledger.submit("local/waits", request_of())
    answer = client.post("/v1/videos/edits", json={"prompt": "p", "video": {"id": "waits"}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "video_not_ready")
    assert answer.headers["x-should-retry"] == "false"
    assert ledger.books().submitted == 2


def test_a_plain_video_begins_with_none(client: TestClient) -> None:
    answer = client.post("/v1/videos", data={"prompt": "p"}, files=film())
    assert answer.json()["error"]["param"] == "video" and answer.status_code == 400


# sync


@pytest.fixture
def worker(house: House) -> Iterator[dict[str, Any]]:
    """Ends every job in the way that is asked for: `ok`, or fails with that code."""
    how: dict[str, Any] = {"end": "ok"}
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.05):
            claim = house.ledger.claim("h") if how["end"] else None
            if not isinstance(claim, Claim):
                continue
            if how["end"] == "ok":
                key = house.blobs.put("t/local/videos/x/out", grey(5).mp4(), ".mp4").key
                house.ledger.commit(claim, {"video": key})
            else:
                house.ledger.fail(claim, how["end"], "it broke", retry=False)

    thread = threading.Thread(target=work)
    thread.start()
    yield how
    over.set()
    thread.join()


def test_waiting_gives_the_video_itself(client: TestClient, worker: dict[str, Any]) -> None:
    answer = client.post("/v1/videos/sync", data={"prompt": "a field"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "video/mp4" and answer.content == grey(5).mp4()
    video_id = answer.headers["x-video-id"]
    assert client.get(f"/v1/videos/{video_id}").json()["status"] == "completed"


def test_who_has_waited_long_enough_is_told_where_to_ask(
    client: TestClient, worker: dict[str, Any]
) -> None:
    worker["end"] = ""
    begin = time.monotonic()
    answer = client.post(
        "/v1/videos/sync", data={"prompt": "a field"}, headers={"prefer": "respond-async, wait=1"}
    )
    assert answer.status_code == 504 and time.monotonic() - begin >= 1
    assert answer.json()["error"]["code"] == "video_not_ready"
    assert answer.headers["x-should-retry"] == "false"
    worker["end"] = "ok"
    path = answer.headers["location"]
    wait_for(lambda: client.get(path).json()["status"] == "completed")


def test_a_failure_is_told_once(client: TestClient, worker: dict[str, Any]) -> None:
    worker["end"] = "engine_error"
    answer = client.post("/v1/videos/sync", data={"prompt": "a field"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "video_failed")
    assert "it broke" in answer.json()["error"]["message"]
    assert answer.headers["x-should-retry"] == "false"


def test_waiting_refuses_as_asking_does(client: TestClient) -> None:
    answer = client.post("/v1/videos/sync", data={"prompt": "@anna waves"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
