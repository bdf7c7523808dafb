"""What Prometheus is told, against histories whose figures are known."""

import random
import time
import uuid
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.deps import House
from service.errors import NotFound
from service.jobs import Claim
from service.ledger import Ledger, connect
from service.metrics import Metrics
from service.roster import WorkerState
from tests.service.rig import request_of
from workers.settings import Settings

Samples = dict[str, float]


def read(text: str) -> Samples:
    """Sample -> value, a sample written as Prometheus does, labels in order of their names."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.name.startswith("troupe_") and family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def told(ledger: Ledger) -> Samples:
    return read(Metrics().text(ledger.figures()).decode())


def start(ledger: Ledger, name: str) -> Claim:
    ledger.submit(name, request_of("anna"))
    found = ledger.claim(uuid.uuid4().hex)
    assert found is not None and found.ref == name
    return found


def test_a_scripted_history_has_these_figures(ledger: Ledger, house: House) -> None:
    done = start(ledger, "t/done")
    ledger.beat(done, 10, True, step=1, steps=2)
    ledger.beat(done, 20, True, step=2, steps=2)
    timings = {"encode_s": 0.2, "denoise_s": 4.0, "decode_s": 0.1}
    assert ledger.commit(done, {"video": "k", "timings": timings}) == "ok"
    assert ledger.commit(done, {"video": "k", "timings": timings}) == "ok"  # asked twice

    slow = start(ledger, "t/slow")
    assert ledger.commit(Claim(slow.ref, "0", 1, slow.request), {}) == "stale"
    ledger.cancel("t/slow")
    assert ledger.commit(slow, {}) == "cancel"
    ledger.fail(slow, "cancelled", "on request", retry=False)
    ledger.fail(start(ledger, "t/wrong"), "invalid_request", "why", retry=False)
    ledger.submit("t/never", request_of("anna"))
    ledger.delete("t/never")
    again = start(ledger, "u/again")
    ledger.hand_back(again)
    ledger.submit("u/waits", request_of("anna"))
    assert ledger.due(10, 0.0) == ["u/again", "u/waits"]
    start_again = ledger.claim("h")
    assert start_again is not None and start_again.ref == "u/again"
    house.roster.announce(WorkerState("w1", "busy", digest="d1"))
    house.roster.announce(WorkerState("w2", "idle", digest="d1"))
    house.roster.announce(WorkerState("w3", "idle", digest="d1"))

    found = told(ledger)
    spec = done.request["spec"]
    expected = {
        "troupe_ledger_up": 1,
        "troupe_jobs{state=queued}": 1,
        "troupe_jobs{state=running}": 1,
        "troupe_jobs_submitted_total": 6,
        "troupe_jobs_total{outcome=completed,reason=completed}": 1,
        "troupe_jobs_total{outcome=cancelled,reason=cancelled}": 1,
        "troupe_jobs_total{outcome=cancelled,reason=deleted}": 1,
        "troupe_jobs_total{outcome=failed,reason=invalid_request}": 1,
        "troupe_attempts_total": 5,
        "troupe_attempts_ended_total{how=handed_back}": 1,
        "troupe_attempts_ended_total{how=completed}": 1,
        "troupe_commit_rejected_total{reason=stale_token}": 1,
        "troupe_commit_rejected_total{reason=cancel}": 1,
        "troupe_lease_expired_total": 0,
        "troupe_reaper_redispatch_total": 2,
        "troupe_video_seconds_total": round(spec["num_frames"] / spec["fps"], 3),
        "troupe_workers{digest=d1,role=generate,state=idle}": 2,
        "troupe_workers{digest=d1,role=generate,state=busy}": 1,
        "troupe_quarantined": 0,
        "troupe_queue_wait_seconds_count": 4,
        "troupe_time_to_first_progress_seconds_count": 1,
        "troupe_job_duration_seconds_count": 1,
        "troupe_stage_seconds_count{stage=denoise}": 1,
        "troupe_stage_seconds_sum{stage=denoise}": 4.0,
        "troupe_stage_seconds_bucket{le=2.5,stage=denoise}": 0,
        "troupe_stage_seconds_bucket{le=5.0,stage=denoise}": 1,
        "troupe_stage_seconds_bucket{le=+Inf,stage=denoise}": 1,
        "troupe_stage_seconds_bucket{le=0.1,stage=decode}": 1,
        "troupe_stage_seconds_bucket{le=0.1,stage=encode}": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert 0 < found["troupe_oldest_queued_age_seconds"] < 60
    assert 0 <= found["troupe_oldest_lease_age_seconds"] < 60
    assert sum(found[name] for name in found if name.startswith("troupe_jobs_total")) == 4


def test_what_expires_is_counted(settings: Settings) -> None:
    brief = settings.model_copy(update={"lease_s": 0.2, "max_attempts": 1})
    ledger = Ledger(connect(brief), brief)
    start(ledger, "t/a")
    end = time.monotonic() + 20
    while ledger.reap() == ([], []):
        assert time.monotonic() < end
    found = told(ledger)
    assert found["troupe_lease_expired_total"] == found["troupe_quarantined"] == 1
    assert found["troupe_jobs_total{outcome=failed,reason=quarantined}"] == 1
    stalled = Ledger(connect(brief), brief.model_copy(update={"lease_s": 60.0, "stall_s": 0.1}))
    start(stalled, "t/b")
    while stalled.reap() == ([], []):
        assert time.monotonic() < end
    assert told(ledger)["troupe_stalled_total"] == told(ledger)["troupe_lease_expired_total"] == 1
    stalled.close()
    ledger.close()


@pytest.mark.parametrize("seed", range(3))
def test_the_figures_balance_after_any_history(settings: Settings, seed: int) -> None:
    """Every job is somewhere and every start is over or in hand; time held is what jobs say."""
    brief = settings.model_copy(update={"lease_s": 0.05})
    ledger, dice, held, names = Ledger(connect(brief), brief), random.Random(seed), [], []
    for number in range(150):
        act = dice.choice(["submit", "claim", "claim", "commit", "fail", "again", "back", "reap"])
        if act == "submit" or not names:
            names.append(f"t{number % 3}/{number}")
            ledger.submit(names[-1], request_of("anna"))
        elif act == "claim":
            held += [one for one in [ledger.claim(uuid.uuid4().hex)] if one is not None]
        elif act == "reap":
            ledger.reap()
            ledger.cancel(dice.choice(names))
        elif held:
            one = held.pop(dice.randrange(len(held)))
            ledger.beat(one, 5, True, step=1)
            {
                "commit": lambda one=one: ledger.commit(one, {}),
                "fail": lambda one=one: ledger.fail(one, "x", "x", retry=False),
                "again": lambda one=one: ledger.fail(one, "x", "x", retry=True),
                "back": lambda one=one: ledger.hand_back(one),
            }[act]()
    found, books = told(ledger), ledger.books()
    assert books.balanced

    def total(name: str) -> float:
        return sum(value for sample, value in found.items() if sample.split("{")[0] == name)

    ended = total("troupe_jobs_total")
    assert ended == books.completed + books.failed
    assert found["troupe_jobs_submitted_total"] == len(names) == ended + total("troupe_jobs")
    over = total("troupe_attempts_ended_total")
    assert found["troupe_attempts_total"] == over + found["troupe_jobs{state=running}"] > 0
    jobs = [ledger.read(name) for name in names]
    spent = sum(job.number("spent_ms") for job in jobs)
    assert found["troupe_gpu_seconds_total"] == spent / 1000
    started = sum("started_ms" in job.fields for job in jobs)
    assert found["troupe_queue_wait_seconds_count"] == started
    moved = sum("first_ms" in job.fields for job in jobs)
    assert found["troupe_time_to_first_progress_seconds_count"] == moved
    ledger.close()


def test_requests_are_counted_by_template_and_status(client: TestClient) -> None:
    for name in ("a", "b"):
        client.get(f"/v1/videos/{name}")
    client.get("/nowhere")
    client.request("BREW", "/nowhere/else")
    client.get("/studio/")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = read(answer.text)
    route = "route=/v1/videos/{video_id}"
    assert found[f"troupe_http_requests_total{{method=GET,{route},status=404}}"] == 2
    assert found[f"troupe_http_request_seconds_count{{method=GET,{route}}}"] == 2
    assert found["troupe_http_requests_total{method=GET,route=none,status=404}"] == 1
    assert found["troupe_http_requests_total{method=other,route=none,status=404}"] == 1
    assert found["troupe_http_requests_total{method=GET,route=/studio,status=200}"] == 1
    assert "nowhere" not in answer.text and "_created" not in answer.text


def test_a_bug_counts_as_500(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(ref: str) -> None:
        raise RuntimeError

    monkeypatch.setattr(client.app.state.house.front, "read", bug)  # type: ignore[attr-defined]
    assert client.get("/v1/videos/v").status_code == 500
    found, route = read(client.get("/metrics").text), "route=/v1/videos/{video_id}"
    assert found[f"troupe_http_requests_total{{method=GET,{route},status=500}}"] == 1


def test_no_label_names_a_tenant_or_a_job(client: TestClient, ledger: Ledger) -> None:
    ledger.fail(start(ledger, "canary-tenant/canary-job"), "x", "canary-message", retry=True)
    client.get("/v1/videos/canary-job")
    assert "troupe_attempts_total 1.0" in client.get("/metrics").text
    assert "canary" not in client.get("/metrics").text


def test_without_the_ledger_it_tells_of_itself(settings: Settings, tmp_path: Path) -> None:
    lost = settings.model_copy(update={"redis_url": f"unix://{tmp_path}/none"})
    with TestClient(create_app(lost)) as client:
        client.get("/healthz")
        found = read(client.get("/metrics").text)
    assert found["troupe_ledger_up"] == 0
    assert found["troupe_http_requests_total{method=GET,route=/healthz,status=200}"] == 1
    assert "troupe_jobs_submitted_total" not in found


def test_where_keys_are_required_it_needs_an_operators(settings: Settings) -> None:
    with TestClient(create_app(settings.model_copy(update={"auth": "keys"}))) as client:
        house: House = client.app.state.house  # type: ignore[attr-defined]
        assert client.get("/metrics").status_code == 401
        for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
            key = house.keys.create("acme", scopes=[scope])
            answer = client.get("/metrics", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status


def test_a_deleted_jobs_figures_stay(ledger: Ledger) -> None:
    assert ledger.commit(start(ledger, "t/a"), {}) == "ok"
    before = told(ledger)
    ledger.delete("t/a")
    with pytest.raises(NotFound):
        ledger.read("t/a")
    assert told(ledger) == before
