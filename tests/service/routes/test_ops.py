"""What the operator is told of a known state of things, and that only he is."""

import uuid

from fastapi.testclient import TestClient

from service.app import create_app
from service.deps import House
from service.roster import WorkerState
from service.tenants import Tenants
from tests.service.rig import request_of
from workers.settings import Settings


def test_an_empty_service_is_told_in_the_same_shape(client: TestClient) -> None:
    found = client.get("/v1/ops").json()
    for name in ("tenants", "running", "line", "quarantine", "failures", "workers"):
        assert found[name] == []
    assert found["books"]["balanced"] and found["redis"]["safe"]
    assert found["webhooks"] == {"due": 0, "dead": 0}


def test_queue_hands_and_faults_are_told(
    client: TestClient, house: House, settings: Settings
) -> None:
    ledger = house.ledger
    for name in ("t/a", "t/b", "t/c", "u/d"):
        ledger.submit(name, request_of("anna"))
    Tenants(house.ledger._redis, settings).set("u", weight=4.0)
    claim = ledger.claim(uuid.uuid4().hex, "w1")
    assert claim is not None and claim.ref == "t/a"
    ledger.beat(claim, 30, True, stage="denoise", step=3, steps=9)
    other = ledger.claim(uuid.uuid4().hex, "w1")
    assert other is not None and other.ref == "u/d"
    ledger.fail(other, "engine_error", "it broke", retry=False)
    ledger.cancel("t/c")
    told = WorkerState("w1", "busy", digest="d", job="t/a", runtime="dtype=bf16")
    house.roster.announce(told)
    house.fleet.quarantine("f" * 64, "head.head.weight holds numbers that are not finite", "w1")

    found = client.get("/v1/ops").json()
    (running,) = found["running"]
    assert {name: running[name] for name in ("ref", "stage", "step", "steps", "attempts")} == {
        "ref": "t/a", "stage": "denoise", "step": 3, "steps": 9, "attempts": 1,
    }  # fmt: skip
    assert 0 <= running["lease_age"] <= running["held"] <= running["age"]
    assert [job["ref"] for job in found["line"]] == ["t/b"]
    tenants = {one.pop("name"): one for one in found["tenants"]}
    assert [(tenants["t"][key]) for key in ("waiting", "running", "weight")] == [1, 1, 1]
    assert tenants["u"]["weight"] == 4 and tenants["t"]["oldest"] > 0 == tenants["u"]["oldest"]
    assert tenants["u"]["spent"] == ledger.read("u/d").number("spent_ms")
    (failure,) = found["failures"]
    assert (failure["ref"], failure["code"], failure["message"]) == (
        "u/d", "engine_error", "it broke",
    )  # fmt: skip
    assert [one["ended"] for one in failure["history"]] == ["engine_error"]
    assert found["workers"][0]["runtime"] == "dtype=bf16"
    (model,) = found["models"]
    assert (model["digest"], model["worker"]) == ("f" * 64, "w1")
    assert "not finite" in model["reason"] and model["at_ms"] > 0
    assert found["books"] == {
        "submitted": 4, "queued": 1, "running": 1, "completed": 0, "failed": 2, "balanced": True,
    }  # fmt: skip


def test_a_job_in_quarantine_brings_a_line_for_each_start(settings: Settings) -> None:
    brief = settings.model_copy(update={"lease_s": 0.05, "max_attempts": 2})
    with TestClient(create_app(brief)) as client:
        ledger = client.app.state.house.ledger  # type: ignore[attr-defined]
        ledger.submit("t/a", request_of("anna"))
        while ledger.read("t/a").state != "failed":
            ledger.claim(uuid.uuid4().hex, "w1")
            ledger.reap()
        found = client.get("/v1/ops").json()
    (job,) = found["quarantine"]
    assert found["quarantined"] == 1 and found["failures"] == []
    assert [(one["attempt"], one["worker"]) for one in job["history"]] == [(1, "w1"), (2, "w1")]


def test_an_operator_cancels_anybodys_job_and_that_is_written_down(
    client: TestClient, house: House
) -> None:
    house.ledger.submit("t/a", request_of("anna"))
    path = "/v1/ops/jobs/t/a/cancel"
    assert client.post(path).json() == {"cancelled": True}
    assert client.post(path).json() == {"cancelled": False}
    assert client.post("/v1/ops/jobs/t/none/cancel").status_code == 404
    assert house.ledger.read("t/a").text("error_code") == "cancelled"
    assert [entry.action for entry in house.audit.entries("t")] == ["video.cancelled"]


def test_where_keys_are_required_it_needs_an_operators(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"auth": "keys"}))) as client:
        house: House = client.app.state.house  # type: ignore[attr-defined]
        house.ledger.submit("acme/a", request_of("anna"))
        for path, method in (("/v1/ops", "GET"), ("/v1/ops/jobs/acme/a/cancel", "POST")):
            assert client.request(method, path).status_code == 401
            for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
                header = {"Authorization": f"Bearer {house.keys.create('acme', scopes=[scope])}"}
                assert client.request(method, path, headers=header).status_code == status
        page = client.get("/ops/")  # the page itself holds nothing
        assert page.status_code == 200 and "Operations" in page.text
