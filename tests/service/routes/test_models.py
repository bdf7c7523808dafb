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
