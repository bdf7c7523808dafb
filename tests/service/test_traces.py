"""Traces: nothing without a wish for them; from the POST to the commit over real processes."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import traces
from service.ledger import connect
from tests.service.rig import ROOT, Service, picture, wait_for
from workers.settings import Settings

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
STAGES = {"fetch", "encode", "denoise", "decode", "store", "commit"}


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """What this process traces."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces.use(provider)
    yield exporter
    traces.use(None)
    provider.shutdown()


def test_without_a_wish_nothing_is_imported_and_nothing_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = (
        "import sys; from service import traces; traces.set_up('x'); traces.flush()\n"
        f"with traces.span('a', '{CLIENT}', '{CLIENT}', b=1): print(repr(traces.carried()))\n"
        "stages = traces.Stages(); stages.enter('a'); stages.end(); traces.note(c=2)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["''", "[]"], done.stderr


def test_what_the_client_gave_is_passed_on_if_it_is_one() -> None:
    assert traces.carried(CLIENT) == CLIENT
    none = "0" * 32
    for wrong in (None, "", "x", CLIENT + "\n", CLIENT.upper(), f"00-{none}-b7ad6b7169203331-01"):
        assert traces.carried(wrong) == ""


def test_spans_hang_together_and_tell_no_messages(spans: InMemorySpanExporter) -> None:
    first = ""
    with pytest.raises(ValueError), traces.span("attempt", CLIENT, job="v"):
        first = traces.carried(CLIENT)
        stages = traces.Stages()
        stages.enter("encode")
        stages.enter("denoise")
        stages.end()
        traces.note(outcome="failed")
        raise ValueError("canary")
    with traces.span("attempt", CLIENT, link=first):
        assert traces.trace_id() == CLIENT[3:35]
    assert traces.carried() == ""
    encode, denoise, attempt, again = spans.get_finished_spans()
    assert [one.name for one in (encode, denoise)] == ["encode", "denoise"]
    assert attempt.parent is not None and attempt.parent.span_id == int(CLIENT[36:52], 16)
    assert encode.parent.span_id == denoise.parent.span_id == attempt.context.span_id
    assert attempt.attributes == {"job": "v", "outcome": "failed"}
    assert [link.context.span_id for link in again.links] == [attempt.context.span_id]
    assert attempt.status.description == "ValueError" and not attempt.events
    assert "canary" not in attempt.to_json()


def test_other_peoples_exporters_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    traces.set_up("x")
    assert "zipkin" in caplog.text and traces.carried() == ""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    traces.set_up("x")
    with traces.span("a"):
        assert traces.carried() == ""


@pytest.fixture
def received() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP receiver's address, and the bodies that came."""
    bodies: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_job_that_lost_a_worker_is_one_trace(
    settings: Settings,
    tmp_path: Path,
    received: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, bodies = received
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    (tmp_path / "model").mkdir()
    given = {"model_dir": tmp_path / "model", "lease_s": 3.0}
    service = Service(settings.model_copy(update=given), tmp_path)
    try:
        service.start("gateway", "worker", "reaper")
        service.wait_ready()
        answer = httpx.post(
            f"{service.url}/v1/videos",
            data={"prompt": "@anna crash canary", "steps": "4"},
            files={"images": ("anna.png", picture())},
            headers={"traceparent": CLIENT},
            timeout=60,
        )
        assert answer.status_code == 202, answer.text
        video = f"{service.url}/v1/videos/{answer.json()['id']}"
        wait_for(lambda: httpx.get(video, timeout=60).json()["status"] == "completed")
        for name in ("worker", "gateway"):
            service.stop(name)
        logs = service.log("worker")
    finally:
        service.close()

    found: dict[str, list[Any]] = {}
    services = set()
    for body in bodies:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            named = {one.key: one.value.string_value for one in resource.resource.attributes}
            services.add(named["service.name"])
            for one in (span for scope in resource.scope_spans for span in scope.spans):
                found.setdefault(one.name, []).append(one)
    assert services == {"troupe-gateway", "troupe-worker"}
    everything = [span for ones in found.values() for span in ones]
    assert {span.trace_id.hex() for span in everything} == {CLIENT[3:35]}
    (posted,), attempt = found["POST /v1/videos"], found["attempt"][-1]
    assert posted.parent_span_id.hex() == CLIENT[36:52]
    assert attempt.parent_span_id == posted.span_id
    values = {one.key: one.value for one in attempt.attributes}
    assert (values["attempt"].int_value, values["outcome"].string_value) == (2, "completed")

    key = f"{settings.key_prefix}:job:local/{answer.json()['id']}"
    client = connect(settings)
    record = client.hgetall(key)
    client.close()
    assert record["traceparent"][36:52] == posted.span_id.hex()
    assert [link.span_id.hex() for link in attempt.links] == [record["first_trace"][36:52]]
    assert record["first_trace"][36:52] != attempt.span_id.hex()
    below = [span.name for span in everything if span.parent_span_id == attempt.span_id]
    assert sorted(below) == sorted(STAGES)
    assert not any(b"canary" in body for body in bodies)
    assert CLIENT[3:35] in logs and "trace_id" in logs
