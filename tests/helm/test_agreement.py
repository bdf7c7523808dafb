"""What the chart says in its own words must be what the code does: settings, times, metrics."""

import json
import re
import time
from dataclasses import replace
from typing import Any

import pytest
import yaml

from service.jobs import Terms
from service.ledger import Ledger, connect
from service.metrics import Metrics
from service.roster import Roster, WorkerState
from service.settings import Settings as ServiceSettings
from tests.helm.chart import CHART, LEAST, objects, over
from tests.service.rig import redis_url, request_of, settings
from workers import app, boot
from workers.settings import Settings

__all__ = ["redis_url", "settings"]

SCHEMA = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Of the settings, those that the chart makes of its other values.
MADE = {
    "redis_url", "broker_url", "blobs_url", "model_dir", "runtime", "encodings_dir", "signing_dir",
}  # fmt: skip
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "enum", "type")


def test_every_setting_is_one_of_the_charts_or_made_by_it() -> None:
    assert SCHEMA["properties"].keys() | MADE == Settings.model_fields.keys()
    assert not SCHEMA["properties"].keys() & MADE


def test_the_charts_bounds_are_those_of_the_code() -> None:
    known = Settings.model_json_schema(by_alias=False)["properties"]
    for name, ours in SCHEMA["properties"].items():
        theirs = {key: known[name][key] for key in BOUNDS if key in known[name]}
        if "enum" in theirs:
            theirs.pop("type", None)
        assert {key: ours[key] for key in BOUNDS if key in ours} == theirs, name


def test_what_the_chart_says_unasked_is_what_the_code_would_do() -> None:
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    other = {name for name, value in VALUES["settings"].items() if value != defaults[name]}
    assert other == {"auth"}  # on one's own machine nobody needs a key
    assert VALUES["settings"]["auth"] == "keys"


def test_the_grace_is_the_sum_of_what_a_worker_may_take() -> None:
    """The longer of its two ways out, in the order of workers.app: a soft shutdown for a lease; or
    a drain, the step in hand, and Celery's own end, five seconds at most."""
    for lease in (1.0, 15.0, 47.5):
        given = Settings(lease_s=lease)
        soft = app.make_app(given).conf.worker_soft_shutdown_timeout
        assert soft == lease
        grace = objects(over(LEAST, {"settings": {"lease_s": lease}})).at(
            "Deployment/worker-gpu spec.template.spec.terminationGracePeriodSeconds"
        )
        step = VALUES["poolDefaults"]["stepSeconds"]
        assert grace >= soft + boot.DRAIN_S + step + 5
    assert VALUES["poolDefaults"]["startupSeconds"] == app.LOAD_LIMIT_S


def test_the_folders_that_the_chart_mounts_are_those_that_workers_use() -> None:
    for url in ("s3://videos/troupe", "/data/blobs"):
        values: dict[str, Any] = {"model": {"folder": "", "registry": "s3://models/all"}}
        mounts = objects(over(LEAST, values, {"storage": {"url": url}})).at(
            "Deployment/worker-gpu spec.template.spec.containers.0.volumeMounts"
        )
        places = {one["name"]: one["mountPath"] for one in mounts}
        used = Settings(blobs_url=url)
        at = "/app" / used.model_cache  # absolute stays as it is
        assert places["models"] == str(at)
        state = str("/app" / used.own_signing_dir.parent)
        assert state in {places.get("state"), places.get("data")}


@pytest.fixture
def figures(settings: ServiceSettings) -> str:
    """What /metrics tells after a job that went well, one that killed its worker, and a request."""
    given = settings.model_copy(update={"lease_s": 0.3, "max_attempts": 1})
    ledger = Ledger(connect(given), given)
    ledger.submit("acme/well", request_of("anna"))
    well = ledger.claim("one", "w")
    assert well is not None
    ledger.beat(well, 50, True, step=1)
    assert ledger.commit(well, {"timings": {"denoise_s": 0.1}}) == "ok"
    ledger.submit("acme/ill", request_of("anna"))
    ill = ledger.claim("two", "w")
    assert ill is not None
    ledger.reap()
    for _ in range(100):
        time.sleep(0.1)
        if ledger.reap()[1]:
            break
    assert ledger.commit(replace(ill), {}) == "stale"
    Roster(connect(given), settings).announce(WorkerState("w", "idle", digest="d"))
    metrics = Metrics()
    metrics.count("POST", "/v1/videos", 202, 0.1)
    told = metrics.text(ledger.figures()).decode()
    ledger.close()
    return told


def _expressions() -> list[str]:
    values = {"metrics": {"rules": {"enabled": True}, "dashboard": {"enabled": True}}}
    found = objects(over(LEAST, values))
    rules = found.at("PrometheusRule/ spec.groups.0.rules")
    panels = json.loads(found.at("ConfigMap/dashboard data")["troupe.json"])["panels"]
    asked = [one["expr"] for one in rules]
    asked += [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(rules) >= 12 and len(panels) >= 10
    return asked


def test_alerts_and_dashboard_ask_for_what_is_told(figures: str) -> None:
    told = set(re.findall(r"^(troupe_\w+)", figures, re.MULTILINE))
    asked = {name for text in _expressions() for name in re.findall(r"troupe_\w+", text)}
    assert asked - told == set()
    # Labels with one wanted value, of metrics that those two jobs moved.
    pairs = {
        (name, *pair)
        for text in _expressions()
        for name, labels in re.findall(r"(troupe_\w+)\{([^}]*)\}", text)
        for pair in re.findall(r'(\w+)="([^"]*)"', labels)
    }
    for name, label, value in pairs - {("troupe_workers", "state", "unhealthy")}:
        assert re.search(rf'^{name}{{[^}}]*{label}="{value}"', figures, re.MULTILINE), (name, value)


def test_panels_stand_side_by_side() -> None:
    panels = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
    cells = {
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    }
    assert len(cells) == sum(p["gridPos"]["w"] * p["gridPos"]["h"] for p in panels)
    assert max(x for x, _ in cells) < 24


def test_keda_counts_jobs_that_wait_and_jobs_in_hand(settings: ServiceSettings) -> None:
    """KEDA's Redis scaler asks a sorted set for its ZCARD. Over the real ledger, the formula is the
    same before a claim and after it, and lists by tier hold what waits of that tier."""
    lists = ["queued", "wait:acme:draft"]
    auto = {"enabled": True, "lists": lists}
    values = {
        "settings": {"key_prefix": settings.key_prefix},
        "workers": [{"name": "gpu", "autoscaling": auto}],
    }
    triggers = objects(over(LEAST, values)).at("ScaledObject/worker-gpu spec.triggers")
    keys = {one["name"]: one["metadata"]["listName"] for one in triggers}
    client = connect(settings)
    ledger = Ledger(client, settings)

    def sizes() -> dict[str, int]:
        return {name: int(client.zcard(key)) for name, key in keys.items()}

    ledger.submit("acme/one", request_of("anna"), Terms(tier="draft"))
    ledger.submit("acme/two", request_of("anna"), Terms(tier="final"))
    assert client.type(keys["waiting0"]) == "zset"
    assert sizes() == {"running": 0, "waiting0": 2, "waiting1": 1}
    claim = ledger.claim("one", "w")
    assert claim is not None and client.type(keys["running"]) == "zset"
    assert sizes() == {"running": 1, "waiting0": 1, "waiting1": 0}
    ledger.commit(claim, {})
    assert sizes() == {"running": 0, "waiting0": 1, "waiting1": 0}
    ledger.close()
