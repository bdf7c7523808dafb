"""Alive is not ready; not ready says why."""

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.app import create_app
from service.deps import House
from service.roster import Roster, WorkerState
from tests.service.rig import request_of
from workers.settings import Settings


def test_alive_asks_nobody(settings: Settings, tmp_path: Path) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    with TestClient(create_app(lost)) as client:
        assert client.get("/healthz").json() == {"status": "ok"}


def test_ready_with_a_fit_worker(client: TestClient, roster: Roster) -> None:
    roster.announce(WorkerState("w1", "idle", digest="d"))
    client.app.state.house.ledger.submit("local/a", request_of())  # type: ignore[attr-defined]
    answer = client.get("/readyz")
    assert answer.status_code == 200
    body = answer.json()
    assert body["status"] == "ready" and all(check["ok"] for check in body["checks"].values())
    assert body["books"] == {
        "submitted": 1, "queued": 1, "running": 0, "completed": 0, "failed": 0, "balanced": True,
    }  # fmt: skip
    assert [worker["id"] for worker in body["workers"]] == ["w1"]


def test_no_worker_at_all(client: TestClient) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert "No worker is alive" in answer.json()["checks"]["workers"]["message"]


def test_an_unfit_worker_says_why(client: TestClient, roster: Roster) -> None:
    roster.announce(WorkerState("w1", "unhealthy", message="vae.safetensors: wrong digest"))
    check = client.get("/readyz").json()["checks"]["workers"]
    assert not check["ok"] and "unhealthy: vae.safetensors: wrong digest" in check["message"]


def test_an_unusable_store_says_so(settings: Settings, tmp_path: Path, roster: Roster) -> None:
    (tmp_path / "file").write_text("in the way")
    roster.announce(WorkerState("w1", "idle"))
    wrong = settings.model_copy(update={"blobs_url": str(tmp_path / "file")})
    with TestClient(create_app(wrong)) as client:
        checks = client.get("/readyz").json()["checks"]
    assert not checks["blobs"]["ok"] and checks["redis"]["ok"] and checks["workers"]["ok"]


def test_who_asks_often_writes_little(
    client: TestClient, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    put = house.blobs.put

    def counted(prefix: str, data: bytes, suffix: str) -> object:
        written.append(prefix)
        return put(prefix, data, suffix)

    monkeypatch.setattr(house.blobs, "put", counted)
    assert all(client.get("/readyz").json()["checks"]["blobs"]["ok"] for _ in range(5))
    assert len(written) <= 1


def test_no_redis_is_told_soon(settings: Settings, tmp_path: Path) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    with TestClient(create_app(lost)) as client:
        begin = time.monotonic()
        answer = client.get("/readyz")
        assert time.monotonic() - begin < 3
    assert answer.status_code == 503
    assert "does not answer" in answer.json()["checks"]["redis"]["message"]


@pytest.mark.parametrize("path", ["/v1/videos", "/v1/videos/v", "/v1/models"])
def test_without_redis_every_route_is_503_and_says_when_to_return(
    settings: Settings, tmp_path: Path, path: str
) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    with TestClient(create_app(lost)) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    assert answer.json()["error"]["code"] == "ledger_unavailable"


def test_a_worker_that_only_encodes_takes_no_jobs(client: TestClient, roster: Roster) -> None:
    roster.announce(WorkerState("e", "idle", role="encode"))
    check = client.get("/readyz").json()["checks"]["workers"]
    assert not check["ok"] and "No worker can take a job. There is none" in check["message"]


def test_who_needs_encodings_needs_somebody_who_encodes(client: TestClient, roster: Roster) -> None:
    roster.announce(WorkerState("w", "idle", role="denoise", encoders="d"))
    check = client.get("/readyz").json()["checks"]["workers"]
    assert not check["ok"] and "No worker encodes" in check["message"]
    roster.announce(WorkerState("e", "unhealthy", message="no room", role="encode"))
    check = client.get("/readyz").json()["checks"]["workers"]
    assert not check["ok"] and "unhealthy: no room" in check["message"]
    roster.announce(WorkerState("e", "busy", role="encode", encoders="another"))
    check = client.get("/readyz").json()["checks"]["workers"]
    assert not check["ok"] and "have other weights" in check["message"]
    roster.announce(WorkerState("e", "busy", role="encode", encoders="d"))
    assert client.get("/readyz").status_code == 200
    roster.announce(WorkerState("e", "unhealthy", message="no room", role="encode"))
    roster.announce(WorkerState("all", "idle"))
    assert client.get("/readyz").status_code == 200  # one needs nobody
