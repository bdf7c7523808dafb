"""compose.yaml: what it says of each service, against the images and against the code."""

from typing import Any

import pytest
import yaml

from service.durable import NEEDED
from tests.docker.dockerfile import ROOT, stages
from tests.helm.chart import LEAST, objects
from workers.settings import Settings

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: one for name, one in SERVICES.items() if "build" in one}


def test_it_brings_up_the_whole_service() -> None:
    assert set(SERVICES) == {"gateway", "worker", "reaper", "courier", "redis", "store"}
    assert set(OURS) == {"gateway", "worker", "reaper", "courier"}
    for one in SERVICES.values():
        assert one["restart"] == "unless-stopped"
        volumes = {mount.partition(":")[0] for mount in one.get("volumes", [])}
        assert volumes <= set(COMPOSE["volumes"])
        assert not one["image"].endswith(":latest")


@pytest.mark.parametrize("name", OURS)
def test_ours_are_built_here_and_may_do_nothing(name: str) -> None:
    one = OURS[name]
    assert one["build"]["target"] in stages()
    assert one["build"]["args"]["PYTHON"].startswith("${PYTHON:?")
    assert one["read_only"] is True and one["user"] == "10001:10001"
    assert one["cap_drop"] == ["ALL"] and one["security_opt"] == ["no-new-privileges:true"]
    assert set(one["depends_on"]) == {"redis", "store"}
    given = {k: v for k, v in one["environment"].items() if k.startswith("TROUPE_")}
    values = {k.removeprefix("TROUPE_").lower(): v for k, v in given.items() if "$" not in v}
    assert {f"TROUPE_{k.upper()}" for k in Settings.model_fields} >= set(given)
    Settings(**values)


def test_who_listens_listens_to_this_machine_alone() -> None:
    ports = [port for one in SERVICES.values() for port in one.get("ports", [])]
    assert ports == ["127.0.0.1:8000:8000"]


def test_redis_is_as_the_ledger_asks() -> None:
    command = SERVICES["redis"]["command"]
    assert {name: command[command.index(f"--{name}") + 1] for name in NEEDED} == NEEDED


def test_the_reaper_and_the_courier_are_the_charts() -> None:
    for name in ("reaper", "courier"):
        args = objects(LEAST).at(f"Deployment/{name} spec.template.spec.containers.0.args")
        assert SERVICES[name]["command"] == args


def test_a_worker_may_take_as_long_as_the_chart_lets_it() -> None:
    values = {**LEAST, "workers": [{"name": "gpu", "stepSeconds": 5}]}
    grace = objects(values).at("Deployment/worker-gpu spec.template.spec")
    assert int(SERVICES["worker"]["stop_grace_period"].rstrip("s")) >= grace[
        "terminationGracePeriodSeconds"
    ]
