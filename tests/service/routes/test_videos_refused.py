"""POST /v1/videos refuses bad input by the field's name, and leaves nothing behind."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from service.app import create_app
from service.errors import BlobFull
from service.jobs import Books
from service.ledger import Ledger
from service.roster import Roster, WorkerState
from tests.service.rig import keys_of
from tests.service.routes.test_videos import ANNA, PNG, files, post, stored
from workers.settings import Settings

FIVE = files(*[f"{k}.png" for k in range(5)])
MANY = json.dumps([{"name": f"n{k}", "image": f"{k}.png"} for k in range(5)])
TWICE = json.dumps([{"name": "anna", "image": "a.png"}, {"name": "anna", "image": "b.png"}])
Send = Callable[[TestClient], Response]


def form(parts: list[Any] | None = None, **fields: Any) -> Send:
    """A multipart body with @anna's picture; a field given as None is left out."""
    data = {"prompt": "@anna waves", "subjects": ANNA, **fields}
    data = {name: value for name, value in data.items() if value is not None}
    return lambda client: client.post("/v1/videos", data=data, files=parts or files("a.png"))


def json_of(**fields: Any) -> Send:
    return lambda client: client.post("/v1/videos", json={"prompt": "a field", **fields})


def raw(body: bytes, kind: str) -> Send:
    return lambda client: client.post("/v1/videos", content=body, headers={"content-type": kind})


def one_picture(data: bytes, name: str = "a.png") -> list[Any]:
    return [("images", (name, data, "image/png"))]


BAD: dict[str, tuple[Send, str | None, int]] = {
    "no prompt": (form(prompt=None), "prompt", 400),
    "empty prompt": (form(prompt="  "), "prompt", 400),
    "endless prompt": (form(prompt="@anna " * 2000), "prompt", 400),
    "prompt twice": (form(prompt=["@anna a", "@anna b"]), "prompt", 400),
    "unknown field": (form(promt="x"), "promt", 400),
    "unknown field in JSON": (json_of(n=2), "n", 400),
    "unknown key of a subject": (
        form(subjects='[{"name": "anna", "image": "a.png", "role": "x"}]'),
        "subjects[0].role",
        400,
    ),
    "too many subjects": (form(FIVE, subjects=MANY), "subjects", 400),
    "too many pictures": (
        form(files(*[f"{k}.png" for k in range(5)], field="input_reference"), subjects=None),
        "subjects",
        400,
    ),
    "a name bound twice": (form(files("a.png", "b.png"), subjects=TWICE), "subjects", 400),
    "a name that is none": (
        form(subjects='[{"name": "an na", "image": "a.png"}]', prompt="x"), "subjects", 400,
    ),
    "a name without a picture": (form(prompt="@anna waves at @bob"), "prompt", 400),
    "a picture never named": (form(prompt="somebody waves"), "prompt", 400),
    "a file nobody names": (form(files("a.png", "b.png")), "images", 400),
    "a file that is missing": (form(files("b.png")), "subjects[0].image", 400),
    "subjects not JSON": (form(subjects="anna=a.png"), "subjects", 400),
    "subjects no list": (form(subjects='{"name": "anna"}'), "subjects", 400),
    "subjects without image": (form(subjects='[{"name": "anna"}]'), "subjects[0].image", 400),
    "subjects a thousand deep": (form(subjects="[" * 100_000), "subjects", 400),
    "corrupt picture": (form(one_picture(PNG[:50])), "images", 400),
    "text called .png": (form(one_picture(b"I am text")), "images", 400),
    "empty picture": (form(one_picture(b"")), "images", 400),
    "a picture of another format": (form(one_picture(b"GIF89a" + bytes(40))), "images", 400),
    "a huge file": (form(one_picture(bytes(13_000_000))), "images", 413),
    "a file in another field": (
        form([("avatar", ("a.png", PNG, "image/png"))]), "avatar", 400,
    ),
    "an address for a picture": (
        form(**{"input_reference[image_url]": "http://169.254.169.254/"}),
        "input_reference[image_url]",
        400,
    ),
    "an address in JSON": (
        json_of(subjects=[{"name": "anna", "image": "https://x/a.png"}]),
        "subjects[0].image",
        400,
    ),
    "no base64": (
        json_of(subjects=[{"name": "anna", "image": "a.png"}]), "subjects[0].image", 400,
    ),
    "size off the grid": (form(size="97x64"), "size", 400),
    "size too large": (form(size="1280x720"), "size", 400),
    "size too small": (form(size="8x8"), "size", 400),
    "size negative": (form(size="-96x64"), "size", 400),
    "size as words": (form(size="large"), "size", 400),
    "frames off the grid": (form(num_frames="16"), "num_frames", 400),
    "frames negative": (form(num_frames="-17"), "num_frames", 400),
    "frames enormous": (form(num_frames="9" * 400), "num_frames", 400),
    "frames as a fraction": (form(num_frames="17.5"), "num_frames", 400),
    "frames as truth": (json_of(num_frames=True), "num_frames", 400),
    "seconds as words": (form(seconds="two"), "seconds", 400),
    "seconds negative": (form(seconds="-2"), "seconds", 400),
    "seconds too many": (form(seconds="60"), "seconds", 400),
    "seconds enormous": (form(seconds="1e308"), "seconds", 400),
    "seconds infinite": (form(seconds="inf"), "seconds", 400),
    "seconds no number": (form(seconds="nan"), "seconds", 400),
    "seconds and frames": (form(seconds="2", num_frames="17"), "seconds", 400),
    "seconds at no frames a second": (form(seconds="2", fps="0"), "fps", 400),
    "fps enormous": (form(fps="1000"), "fps", 400),
    "steps none": (form(steps="0"), "steps", 400),
    "steps enormous": (form(steps="1000000"), "steps", 400),
    "seed negative": (form(seed="-1"), "seed", 400),
    "seed enormous": (json_of(seed=2**60), "seed", 400),
    "guidance negative": (form(guidance="-1"), "guidance.scale", 400),
    "guidance infinite": (form(guidance='{"scale": 1e999}'), "guidance.scale", 400),
    "guidance of no mode": (form(guidance='{"mode": "triple"}'), "guidance.mode", 400),
    "guidance a list": (form(guidance="[1]"), "guidance", 400),
    "another model": (form(model="sora-2"), "model", 400),
    "another solver": (form(solver="ddim"), "solver", 400),
    "another tier": (form(tier="cheap"), "tier", 400),
    "JSON broken": (raw(b"{", "application/json"), None, 400),
    "JSON no object": (raw(b"[]", "application/json"), None, 400),
    "JSON twice a key": (
        raw(b'{"prompt": "a", "prompt": "b"}', "application/json"), None, 400,
    ),
    "JSON NaN": (raw(b'{"prompt": "a", "seconds": NaN}', "application/json"), None, 400),
    "JSON no UTF-8": (raw(b'{"prompt": "\xff"}', "application/json"), None, 400),
    "JSON prompt a number": (json_of(prompt=3), "prompt", 400),
    "no boundary": (raw(b"x", "multipart/form-data"), None, 400),
    "another type": (raw(b"<prompt/>", "application/xml"), None, 415),
    "no type": (raw(b"prompt=x", ""), None, 415),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_and_leaves_nothing(
    case: str, client: TestClient, ledger: Ledger, settings: Settings
) -> None:
    send, param, status = BAD[case]
    answer = send(client)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"] and len(error["message"]) < 600
    if param:
        assert param.split("[")[0].split(".")[0] in error["message"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert ledger.books() == Books(0, 0, 0, 0, 0)
    # What stays is how much the tenant used, in all: nothing.
    assert keys_of(settings) in ([], [f"{settings.key_prefix}:quota:local"])
    assert stored(settings) == []


def test_a_tier_that_no_worker_serves_is_told_and_leaves_nothing(
    client: TestClient, ledger: Ledger, roster: Roster, settings: Settings
) -> None:
    roster.announce(WorkerState("w0", "starting"))
    assert post(client, tier="fast").status_code == 202  # nobody knows yet; the job will tell
    before = stored(settings)
    roster.announce(WorkerState("w1", "busy", tiers=("exact",)))
    answer = post(client, tier="fast")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "tier")
    assert error["message"] == "tier: no worker serves 'fast' now; use exact."
    assert ledger.books().submitted == 1 and stored(settings) == before
    assert post(client, tier="exact").status_code == post(client).status_code == 202
    roster.announce(WorkerState("w2", "idle", tiers=("exact", "fast")))
    assert post(client, tier="fast").status_code == 202


def test_messages_say_what_would_be_right(client: TestClient) -> None:
    def message(**fields: Any) -> str:
        return str(form(**fields)(client).json()["error"]["message"])

    assert "Did you mean 'prompt'" in message(promt="x")
    assert "multiple of 8" in message(size="97x64")
    assert "such as 13 or 17" in message(num_frames="16")
    assert "between 0.625 and 4.125" in message(seconds="60")
    assert "such as 2.5" in message(seconds="two")
    assert "'miniature'" in message(model="sora-2")
    assert "no picture of bob" in message(prompt="@anna and @bob")


def test_a_body_beyond_the_limit_is_cut_off(settings: Settings) -> None:
    small = settings.model_copy(update={"max_picture_mb": 0.01})  # and a body of 1.08 MB
    with TestClient(create_app(small)) as client:
        answer = form(one_picture(bytes(1_200_000)))(client)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"


def test_a_full_queue_and_a_full_disk_leave_nothing(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(create_app(settings.model_copy(update={"max_queued": 1}))) as client:
        assert post(client).status_code == 202
        before = stored(settings)
        full = post(client)
        assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
        assert full.headers["retry-after"]

        def refuse(*_: object) -> None:
            raise BlobFull("The disk is full.")

        monkeypatch.setattr(client.app.state.house.blobs, "put", refuse)  # type: ignore[attr-defined]
        disk = post(client)
        assert (disk.status_code, disk.json()["error"]["code"]) == (507, "storage_full")
    assert stored(settings) == before
    assert ledger.books().submitted == 1


@pytest.mark.parametrize("url", ["http://example.com/", "https://10.0.0.1/", "x", ""])
def test_a_webhook_goes_to_the_open_internet_only(
    client: TestClient, settings: Settings, url: str
) -> None:
    answer = client.post("/v1/videos", data={"prompt": "a field", "webhook_url": url})
    if url:
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "webhook_url")
        assert not [key for key in keys_of(settings) if ":job:" in key]
    else:
        assert answer.status_code == 202, "an empty one is none"
