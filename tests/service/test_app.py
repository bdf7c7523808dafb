"""The application as a whole: nothing at import, errors in one shape, the page where it is."""

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from service import app as module
from service.app import create_app
from tests.service.rig import ROOT
from workers.settings import Settings


def test_importing_it_reaches_no_tensor_library_and_opens_nothing() -> None:
    code = (
        "import sys; seen = []\n"
        "sys.addaudithook(lambda event, _: seen.append(event))\n"
        "import service.app\n"
        "assert 'socket.connect' not in seen and 'subprocess.Popen' not in seen\n"
        "print({'torch', 'diffusers', 'transformers', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_preset_that_does_not_exist_is_refused_at_start(settings: Settings) -> None:
    with pytest.raises(ValueError, match="must be one of miniature"):
        create_app(settings.model_copy(update={"preset": "huge"}))


def test_two_applications_share_nothing(settings: Settings, tmp_path: Path) -> None:
    other = settings.model_copy(update={"key_prefix": "other", "blobs_url": str(tmp_path / "o")})
    with TestClient(create_app(settings)) as one, TestClient(create_app(other)) as two:
        made = one.post("/v1/videos", data={"prompt": "a field"}).json()["id"]
        assert two.get(f"/v1/videos/{made}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("PUT", "/v1/videos", 405), ("GET", "/v1/videos/", 404)],
)
def test_the_frameworks_errors_have_our_shape(
    client: TestClient, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_bug_tells_the_client_nothing_but_the_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(video_id: str) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(client.app.state.house.front, "read", bug)  # type: ignore[attr-defined]
    answer = client.get("/v1/videos/v")
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal_error"
    assert "secret" not in answer.text and "secret detail" in caplog.text
    assert answer.headers["x-request-id"].startswith("req_")


def test_every_answer_has_an_id_of_its_own(client: TestClient) -> None:
    ids = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_studio_is_served_where_it_is_installed(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = tmp_path / "studio"
    studio.mkdir()
    monkeypatch.setattr(module, "STUDIO", studio)
    with TestClient(create_app(settings)) as client:
        assert client.get("/studio/").status_code == 404
    (studio / "index.html").write_text("<title>Studio</title>")
    with TestClient(create_app(settings)) as client:
        assert "Studio" in client.get("/").text


def test_the_document_describes_the_body(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    content = paths["/v1/videos"]["post"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json"}
    assert "negative_prompt" in content["application/json"]["schema"]["properties"]


def test_what_was_imported_is_out_of_the_collectors_rounds(client: TestClient) -> None:
    assert gc.get_freeze_count() > 10_000  # else each round takes 80 ms of everybody's time


def test_a_large_body_waits_for_room_and_gives_it_back(client: TestClient) -> None:
    state = cast(FastAPI, client.app).state
    state.room._wait_s = 0.05
    body: dict[str, Any] = {
        "files": {"images": ("a.png", b"x" * 3_000_000)}, "data": {"prompt": "p"}
    }  # fmt: skip
    for _ in range(3):
        assert client.post("/v1/videos", **body).status_code == 400  # no picture
        assert not state.room._held
    state.room._held["local"] = 97_000_000
    answer = client.post("/v1/videos", **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
    assert int(answer.headers["retry-after"]) >= 1
    assert client.post("/v1/videos", json={"prompt": "p"}).status_code == 202
