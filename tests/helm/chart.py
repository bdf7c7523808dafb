"""The chart rendered by Helm's own engine, each set of values once for a test process."""

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).resolve().parents[2] / "helm" / "troupe"
ROOT = CHART.parents[1]
SHAPES = ("laptop", "one-gpu", "fleet")
VERSIONS = ("1.35", "1.36", "1.37")  # of Kubernetes, those that are maintained
DIGEST = "sha256:" + "a" * 64
# The least that says where everything is.
LEAST: dict[str, Any] = {
    "images": {"gateway": {"digest": DIGEST}, "worker": {"digest": DIGEST}},
    "redis": {"host": "ledger.example.com"},
    "storage": {"url": "s3://videos/troupe"},
    "model": {"folder": "models/miniature"},
}
ABSENT = object()
Values = dict[str, Any]


def over(base: Values, *layers: Values) -> Values:
    """Maps are laid over each other, all else replaces."""
    found = copy.deepcopy(base)
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = over(found[key], value) if both else copy.deepcopy(value)
    return found


def shape(name: str) -> Values:
    """One of the examples that the chart brings."""
    found: Values = yaml.safe_load((CHART / "values" / f"{name}.yaml").read_text())
    return found


@functools.cache
def _chart() -> Any:
    return helm_python.Chart.load(str(CHART))


@functools.cache
def _rendered(values: str) -> tuple[tuple[str, str], ...]:
    chart = _chart().render(json.loads(values), name="t", namespace="film")
    return tuple(sorted(chart.items()))


def files(values: Values) -> dict[str, str]:
    """What each template gives, by its path. Raises helm_python.HelmError."""
    return dict(_rendered(json.dumps(values, sort_keys=True)))


class Objects(dict[str, dict[str, Any]]):
    """By kind and name, without the release's: Deployment/gateway."""

    def at(self, path: str) -> Any:
        """`Deployment/gateway spec.replicas`: a value, or ABSENT."""
        name, _, inside = path.partition(" ")
        found: Any = self.get(name, ABSENT)
        for step in filter(None, inside.split(".")):
            key = step.replace("~", ".")
            if isinstance(found, list):
                found = found[int(key)] if int(key) < len(found) else ABSENT
            elif isinstance(found, dict):
                found = found.get(key, ABSENT)
            else:
                return ABSENT
        return found

    def pods(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Name, metadata and spec of every pod that would run."""
        for name, one in self.items():
            if one["kind"] == "Pod":
                yield name, one["metadata"], one["spec"]
            elif "template" in one.get("spec", {}):
                yield name, one["spec"]["template"]["metadata"], one["spec"]["template"]["spec"]


def objects(values: Values) -> Objects:
    """Everything that would be sent to a cluster."""
    found = Objects()
    for path, text in files(values).items():
        if path.endswith(".yaml"):
            for one in filter(None, yaml.load_all(text, yaml.CSafeLoader)):
                name = one["metadata"]["name"].removeprefix("t-troupe").lstrip("-")
                key = f"{one['kind']}/{name}"
                assert key not in found, f"{key} is there twice"
                found[key] = one
    return found


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """All of a pod, those that run before it too."""
    return [*spec.get("initContainers", []), *spec["containers"]]
