"""What can be asked of this server."""

from fastapi.testclient import TestClient

from engine.presets import MINIATURE
from service.roster import Roster, WorkerState


def test_the_preset_with_limits_defaults_and_what_is_loaded(
    client: TestClient, roster: Roster
) -> None:
    roster.announce(WorkerState("w1", "busy", digest="d1"))
    roster.announce(WorkerState("w2", "unhealthy", message="broken", digest="d2"))
    answer = client.get("/v1/models").json()
    (model,) = answer["data"]
    assert (answer["object"], model["object"], model["id"]) == ("list", "model", "miniature")
    assert model["limits"]["max_subjects"] == MINIATURE.limits.max_subjects
    assert model["defaults"]["width"] == MINIATURE.defaults.width
    assert model["digests"] == ["d1"]
    assert model["limits"]["tiers"] == ["exact", "fast"]
    roster.announce(WorkerState("w1", "busy", digest="d1", tiers=("exact",)))
    (model,) = client.get("/v1/models").json()["data"]
    assert model["limits"]["tiers"] == ["exact"]


def test_adapters_are_models_of_their_own(client: TestClient, roster: Roster) -> None:
    """While some healthy worker serves them; two digests while one is being replaced."""
    roster.announce(WorkerState("w1", "idle", digest="d1", models={"noir": "a1", "anime": "b"}))
    roster.announce(WorkerState("w2", "busy", digest="d1", models={"noir": "a2"}))
    roster.announce(WorkerState("w3", "unhealthy", models={"gone": "c"}))
    base, *adapters = client.get("/v1/models").json()["data"]
    assert [(one["id"], one["digests"]) for one in adapters] == [
        ("anime", ["b"]),
        ("noir", ["a1", "a2"]),
    ]
    assert all(one["parent"] == base["id"] and one["limits"] == base["limits"] for one in adapters)
    asked = {"prompt": "a red ball", "model": "noir"}
    answer = client.post("/v1/videos", json=asked)
    assert (answer.status_code, answer.json()["model"]) == (202, "noir")
    assert client.get(f"/v1/videos/{answer.json()['id']}").json()["model"] == "noir"
    for wrong in ("gone", "stable", "", "x" * 200):
        refused = client.post("/v1/videos", json=asked | {"model": wrong})
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "'miniature', 'anime', 'noir'" in error["message"]
    assert client.post("/v1/videos", json=asked | {"model": "miniature"}).status_code == 202
    assert client.post("/v1/videos", json=asked | {"model": ["noir"]}).status_code == 400
