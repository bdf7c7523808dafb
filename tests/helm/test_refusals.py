"""Wrong values: Helm refuses them before anything is sent, and names the one that is wrong."""

import json
from typing import Any

import helm_python
import jsonschema
import pytest
import yaml

from tests.helm.chart import CHART, DIGEST, LEAST, Values, files, over

WRONG: list[tuple[str, Values, str]] = [
    ("a word that is none", {"replicas": 3}, "replicas"),
    ("a slip", {"gateway": {"replica": 3}}, "replica"),
    ("a slip in a pool", {"workers": [{"name": "gpu", "gpus": 1}]}, "gpus"),
    ("a setting that is none", {"settings": {"lease": 15}}, "lease"),
    ("a setting that the chart makes", {"settings": {"redis_url": "redis://x"}}, "redis_url"),
    ("text for a number", {"gateway": {"replicas": "2"}}, "replicas"),
    ("no gateway", {"gateway": {"replicas": 0}}, "replicas"),
    ("a privileged port", {"gateway": {"port": 80}}, "port"),
    ("latest", {"images": {"allowTags": True, "worker": {"tag": "latest"}}}, "tag"),
    ("half a digest", {"images": {"worker": {"digest": "sha256:abc"}}}, "digest"),
    ("neither digest nor tag", {"images": {"worker": {"digest": ""}}}, "images.worker.digest"),
    (
        "a tag alone",
        {"images": {"gateway": {"digest": "", "tag": "v1"}}},
        "images.gateway.digest",
    ),
    ("root", {"podSecurity": {"runAsUser": 0}}, "runAsUser"),
    ("no lease", {"settings": {"lease_s": 0}}, "lease_s"),
    ("an auth that is none", {"settings": {"auth": "basic"}}, "auth"),
    ("a scheme", {"storage": {"url": "gs://bucket"}}, "url"),
    ("a folder elsewhere", {"storage": {"url": "/srv/blobs"}}, "url"),
    ("no model", {"model": {"folder": ""}}, "model.folder"),
    ("two models", {"model": {"registry": "s3://models/all"}}, "model.registry"),
    ("a claim beside the model", {"model": {"claim": "w"}}, "model.claim"),
    ("a key without a registry", {"model": {"publicKey": {"configMap": "p"}}}, "model.publicKey"),
    ("no Redis", {"redis": {"host": ""}}, "redis.host"),
    (
        "two Redis",
        {"redis": {"embedded": {"enabled": True, "image": {"digest": DIGEST}}}},
        "redis.host",
    ),
    ("a name without a password", {"redis": {"username": "u"}}, "redis.passwordSecret"),
    ("a password in the values", {"redis": {"password": "secret"}}, "password"),
    ("no workers", {"workers": []}, "workers"),
    ("a pool without a name", {"workers": [{"replicas": 1}]}, "name"),
    ("a name twice", {"workers": [{"name": "a"}, {"name": "a"}]}, '"a"'),
    ("a name that is none", {"workers": [{"name": "A B"}]}, "name"),
    (
        "too short a grace",
        {"workers": [{"name": "gpu", "terminationGracePeriodSeconds": 30}]},
        "workers.gpu.terminationGracePeriodSeconds: 30 is too short",
    ),
    (
        "too short for a long lease",
        {
            "settings": {"lease_s": 60},
            "workers": [{"name": "gpu", "terminationGracePeriodSeconds": 60}],
        },
        "a worker may need 88",
    ),
    ("a surge", {"workers": [{"name": "gpu", "maxSurge": 1}]}, "maxSurge"),
    ("nobody may go", {"workers": [{"name": "gpu", "maxUnavailable": 0}]}, "maxUnavailable"),
    ("a card that is none", {"workers": [{"name": "g", "gpu": {"resource": "gpu"}}]}, "resource"),
    (
        "the chart's own word",
        {"workers": [{"name": "g", "runtime": "dtype=bf16,encoders=only"}]},
        "workers.g.runtime",
    ),
    (
        "more at least than at most",
        {"workers": [{"name": "g", "autoscaling": {"enabled": True, "minReplicas": 20}}]},
        "workers.g.autoscaling",
    ),
    (
        "a list that is none",
        {"workers": [{"name": "g", "autoscaling": {"lists": ["running"]}}]},
        "lists",
    ),
    (
        "a share of more than all",
        {"workers": [{"name": "g", "autoscaling": {"share": 1.5}}]},
        "share",
    ),
    ("an ingress to nowhere", {"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.host"),
    (
        "a port that is shut",
        {"storage": {"endpointUrl": "http://minio.film:9000"}},
        "networkPolicy.s3Port: 443 is open, and storage.endpointUrl leads to 9000",
    ),
    ("a scheme's own port", {"storage": {"endpointUrl": "http://minio.film"}}, "leads to 80"),
    (
        "a scaler without a password",
        {
            "redis": {"urlSecret": {"name": "r"}},
            "workers": [{"name": "g", "autoscaling": {"enabled": True}}],
        },
        "redis.passwordSecret",
    ),
    ("traces to a scheme", {"tracing": {"endpoint": "grpc://collector:4317"}}, "endpoint"),
    ("traces to a password", {"tracing": {"endpoint": "http://u:p@collector"}}, "endpoint"),
    ("traces to nobody", {"tracing": {"endpoint": "http://c:4318", "to": []}}, "to"),
    ("the metadata server", {"networkPolicy": {"s3Cidrs": ["169.254.169.254/32"]}}, "s3Cidrs"),
    ("half of all addresses", {"networkPolicy": {"redisCidrs": ["128.0.0.0/1"]}}, "redisCidrs"),
    (
        "scraped without a key",
        {"metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.keySecret.name",
    ),
    ("memory", {"gateway": {"resources": {"limits": {"memory": "lots"}}}}, "memory"),
]


@pytest.mark.parametrize(("values", "named"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_is_refused_by_name(values: Values, named: str) -> None:
    files(LEAST)  # as it stands it is well
    with pytest.raises(helm_python.HelmError) as told:
        files(over(LEAST, values))
    assert named in str(told.value)


def test_they_are_many() -> None:
    assert len(WRONG) >= 30


def _closed(schema: Any, at: str = "") -> list[str]:
    """Objects of a schema that would take any word, but for those that must."""
    found = []
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            found += [at] if schema.get("additionalProperties") is not False else []
        for key, value in schema.items():
            found += _closed(value, f"{at}/{key}")
    return found


def test_no_object_of_the_schema_is_open() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert _closed(schema) == []
    assert _closed({"type": "object", "properties": {}}) == [""]


def test_the_defaults_fit_the_schema() -> None:
    """A chart's own values are checked only together with a user's."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    errors = {
        ".".join(map(str, error.path))
        for error in jsonschema.Draft202012Validator(schema).iter_errors(values)
    }
    assert errors == {"storage.url"}  # which nobody can guess
    properties = set(schema["properties"]) - {"global"}
    assert properties == set(values)
