"""What the chart renders, by Helm's own engine, over many sets of values."""

import functools
import json
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
from kubernetes_validate import utils

from tests.helm.cases import CASES, Case
from tests.helm.chart import ABSENT, CHART, LEAST, SHAPES, VERSIONS, containers, objects, shape
from tests.helm.restricted import breaches
from workers.settings import Settings

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
NAMES = {f"TROUPE_{name.upper()}" for name in Settings.model_fields}
TEXT = {"type": "string", "minLength": 1}
# Of what is no part of Kubernetes, the fields that its operators cannot do without.
FOREIGN: dict[str, dict[str, Any]] = {
    "ScaledObject": {
        "required": ["scaleTargetRef", "triggers", "minReplicaCount", "maxReplicaCount"],
        "properties": {
            "triggers": {"minItems": 2, "items": {
                "required": ["type", "name", "metadata"],
                # KEDA reads every value of a trigger's metadata as text.
                "properties": {"type": {"const": "redis"}, "metadata": {
                    "required": ["address", "listName", "listLength"],
                    "additionalProperties": TEXT}},
            }},
            "advanced": {"properties": {"scalingModifiers": {
                "required": ["formula", "target"], "additionalProperties": TEXT}}},
        },
    },
    "TriggerAuthentication": {"required": ["secretTargetRef"]},
    "ServiceMonitor": {"required": ["selector", "endpoints"]},
    "PrometheusRule": {"properties": {"groups": {"items": {
        "required": ["name", "rules"], "properties": {"rules": {"items": {
            "required": ["alert", "expr", "for", "labels", "annotations"],
            "properties": {"for": {"pattern": "^[0-9]+[smh]$"}}}}}}}}},
    "ExternalSecret": {"required": ["secretStoreRef", "target", "data"]},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _schemas_are_read_once() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "schema_contents", functools.cache(utils.schema_contents))
        yield


@functools.cache
def _is_valid(document: str, version: str) -> None:
    one = json.loads(document)
    if one["kind"] in FOREIGN:
        jsonschema.Draft202012Validator(FOREIGN[one["kind"]]).validate(one["spec"])
    else:
        kubernetes_validate.validate(one, version, strict=True)


def meets(found: Any, wanted: Any) -> bool:
    if callable(wanted):
        return bool(wanted(found))
    return found is ABSENT if wanted is ABSENT else bool(found == wanted)


def test_there_is_enough_of_it() -> None:
    assert len({json.dumps(case.whole, sort_keys=True) for case in CASES}) >= 60
    assert sum(len(case.wanted) for case in CASES) >= 150


@every_case
def test_values_make_what_they_say(case: Case) -> None:
    found = objects(case.whole)
    seen = {path: found.at(path) for path in case.wanted}
    assert {path: seen[path] for path, w in case.wanted.items() if not meets(seen[path], w)} == {}


@every_case
def test_every_object_is_valid_for_all_versions(case: Case) -> None:
    for one in objects(case.whole).values():
        for version in VERSIONS:
            _is_valid(json.dumps(one, sort_keys=True), version)


def test_the_validators_find_what_is_wrong() -> None:
    found = objects(LEAST)
    deployment = {**found["Deployment/gateway"], "spec": {"replicas": "two"}}
    with pytest.raises(jsonschema.ValidationError):
        _is_valid(json.dumps(deployment), "1.37")
    spec = found.at("Deployment/gateway spec.template.spec")
    assert breaches({**spec, "hostNetwork": True}) == ["hostNetwork is set"]
    bare = {**spec["containers"][0], "securityContext": {"runAsUser": 0}}
    assert len(breaches({**spec, "containers": [bare]})) == 3


@every_case
def test_every_pod_is_restricted(case: Case) -> None:
    pods = list(objects(case.whole).pods())
    assert len(pods) >= 4
    for name, _, spec in pods:
        assert breaches(spec) == [], name
        assert spec["automountServiceAccountToken"] is False, name
        assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in containers(spec))


@every_case
def test_pods_find_what_they_name(case: Case) -> None:
    found = objects(case.whole)
    for name, about, spec in found.pods():
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        claims = found.at(f"{name} spec.volumeClaimTemplates")
        volumes |= {one["metadata"]["name"] for one in claims} if claims is not ABSENT else set()
        for one in containers(spec):
            mounts = [mount["mountPath"] for mount in one["volumeMounts"]]
            assert {mount["name"] for mount in one["volumeMounts"]} <= volumes, name
            assert len(mounts) == len(set(mounts)), name
            ports = {port["name"] for port in one.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                asked = one.get(probe, {})
                port = asked.get("httpGet", asked.get("tcpSocket", {})).get("port")
                assert port in {None, *ports}
            image = one["image"]
            assert "@sha256:" in image or image.rpartition(":")[2] not in {"latest", image}, name
            memory = one["resources"]["limits"]["memory"], one["resources"]["requests"]["memory"]
            assert all(memory)
        selector = found.at(f"{name} spec.selector.matchLabels")
        if selector is not ABSENT:
            assert selector.items() <= about["labels"].items()


@every_case
def test_every_variable_is_a_setting(case: Case) -> None:
    found = objects(case.whole)
    config = found.at("ConfigMap/settings data")
    config = found.at("ConfigMap/films-settings data") if config is ABSENT else config
    names = set(config)
    for _, _, spec in found.pods():
        for one in containers(spec):
            given = [pair["name"] for pair in one.get("env", [])]
            assert len(given) == len(set(given))
            names |= {name for name in given if name.startswith("TROUPE_")}
    assert names <= NAMES
    # What the processes would read is what they accept.
    values = {name.removeprefix("TROUPE_").lower(): value for name, value in config.items()}
    Settings(**values)


@every_case
def test_pods_of_workers_are_replaced_and_ended_as_cards_allow(case: Case) -> None:
    for name, one in objects(case.whole).items():
        if not name.startswith(("Deployment/worker-", "Deployment/encoder-")):
            continue
        assert one["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
        spec = one["spec"]["template"]["spec"]
        lease = float(objects(case.whole).at("ConfigMap/settings data.TROUPE_LEASE_S"))
        assert spec["terminationGracePeriodSeconds"] >= lease + 8
        scaled = name.replace("Deployment", "ScaledObject") in objects(case.whole)
        assert ("replicas" in one["spec"]) is not scaled


@every_case
def test_nobody_reaches_what_they_need_not(case: Case) -> None:
    found = objects(case.whole)
    policies = [one["spec"] for one in found.values() if one["kind"] == "NetworkPolicy"]
    if not case.whole.get("networkPolicy", {}).get("enabled", True):
        assert policies == []
        return
    deny = next(one for one in policies if set(one) == {"podSelector", "policyTypes"})
    for name, about, _ in found.pods():
        assert deny["podSelector"]["matchLabels"].items() <= about["labels"].items(), name
    blocks = [
        peer["ipBlock"]
        for one in policies
        for rule in one.get("egress", [])
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    for block in blocks:
        wide = block["cidr"] == "0.0.0.0/0"
        assert not wide or "169.254.0.0/16" in block["except"]
    assert all(rule.get("to") for one in policies for rule in one.get("egress", []))


def test_another_setting_starts_pods_anew() -> None:
    sums = [
        objects({**LEAST, "settings": {"stall_s": stall}}).at(
            f"Deployment/{name} spec.template.metadata.annotations.checksum/settings"
        )
        for stall in (600, 700)
        for name in ("gateway", "worker-gpu", "reaper", "courier")
    ]
    assert len(set(sums)) == 2 and ABSENT not in sums


@pytest.mark.parametrize("name", SHAPES)
def test_helm_has_no_complaint(name: str) -> None:
    told = helm_python.lint(str(CHART), shape(name), strict=True)
    assert told["errors"] == []
    assert [one for one in told["messages"] if one["severity"] > 1] == []


def test_an_install_and_its_notes() -> None:
    """What `helm install --dry-run=client` would send, hooks apart from the rest."""
    config = helm_python.Config(namespace="film", storage_driver="memory")
    release = config.install(
        str(CHART), "t", shape("laptop"), namespace="film", dry_run="client"
    )
    assert "kind: StatefulSet" in release["manifest"]
    # Checks are hooks: they are no part of what is installed.
    assert "submit.py" not in release["manifest"]
    assert "WARNING: settings.auth is none" in release["notes"]
    assert "has 28 s to hand its job on" in release["notes"]
