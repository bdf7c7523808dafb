"""What lines hold, and what none may hold: one real job through real processes, and every log."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import logs
from service.auth import Keys
from service.ledger import connect
from tests.service.rig import Service, picture, wait_for
from workers.settings import Settings

SECRET = "trp_" + "a" * 12 + "_" + "b" * 43


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What this process writes, as JSON."""
    root, stream = logging.getLogger(), io.StringIO()
    before, level = root.handlers[:], root.level
    logs.set_up(stream)
    yield stream
    root.handlers, root.level = before, level


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_line_says_when_where_what_and_about_whom(written: io.StringIO) -> None:
    log = logging.getLogger("service.x")
    with logs.about("acme/video_1", attempt=2, token="7"):
        log.info("step %d", 3)
    log.warning("alone", extra={"status": 404})
    log.debug("too much")
    first, second = lines(written.getvalue())
    assert first.pop("time").endswith("Z") and second.pop("time")
    assert first == {
        "event": "step 3", "level": "info", "logger": "service.x",
        "tenant": "acme", "job": "video_1", "attempt": 2, "token": "7",
    }  # fmt: skip
    expected = {"event": "alone", "level": "warning", "logger": "service.x", "status": 404}
    assert second == expected


def test_an_exception_is_told_without_its_message(written: io.StringIO) -> None:
    try:
        try:
            raise ValueError("canary")
        except ValueError as error:
            raise RuntimeError(f"because of {error}") from error
    except RuntimeError as error:
        logging.getLogger("x").exception("failed")
        celery, extra = logging.getLogger("celery.app.trace"), {"data": {"exc": repr(error)}}
        celery.error("Task raised: %r", error, exc_info=error, extra=extra)
    assert "canary" not in written.getvalue()
    for line in lines(written.getvalue()):
        assert [one["type"] for one in line["exceptions"]] == ["RuntimeError", "ValueError"]
        assert "test_logs.py" in line["exceptions"][0]["frames"][0]


def test_secrets_are_blotted_out(written: io.StringIO) -> None:
    logging.getLogger("x").info("key %s at redis://me:hidden@host/0", SECRET)
    assert "b" * 43 not in written.getvalue() and "hidden" not in written.getvalue()
    assert "trp_" + "a" * 12 + "_…" in written.getvalue()


def test_a_terminal_gets_plain_text(written: io.StringIO) -> None:
    terminal = Terminal()
    logs.set_up(terminal)
    logging.getLogger("x").info("hello %s", SECRET)
    assert "hello trp_" in terminal.getvalue() and "b" * 43 not in terminal.getvalue()
    assert not lines(terminal.getvalue()) and written.getvalue() == ""


@pytest.mark.slow
def test_no_log_of_a_real_job_holds_what_the_client_gave(
    settings: Settings, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    own = settings.model_copy(update={"model_dir": model, "auth": "keys", "lease_s": 3.0})
    key = Keys(connect(own), own, required=True).create("acme")
    headers, files = {"Authorization": f"Bearer {key}"}, {"images": ("anna.png", picture())}
    service = Service(own, tmp_path)
    made: list[str] = []
    try:
        service.start("gateway", "worker", "reaper")
        service.wait_listening()
        http = httpx.Client(base_url=service.url, headers=headers, timeout=60)

        def post(prompt: str) -> httpx.Response:
            answer = http.post("/v1/videos", data={"prompt": prompt, "steps": "4"}, files=files)
            if answer.status_code == 202:
                made.append(answer.json()["id"])
            return answer

        # One that is made, one that crashes, one that the engine fails at, one that is refused.
        wait_for(lambda: post("@anna canary-prompt").status_code == 202)
        assert post("@anna crash canary-prompt").status_code == 202
        assert post("@anna quote canary-prompt").status_code == 202
        assert post("@zed canary-prompt").status_code == 400
        assert http.get("/v1/videos?after=canary-query&x=canary-query").status_code == 404
        assert http.get("/v1/videos", headers={"Authorization": SECRET}).status_code == 401

        def ended() -> bool:
            states = [http.get(f"/v1/videos/{one}").json()["status"] for one in made]
            return states == ["completed", "completed", "failed"]

        wait_for(ended)
        for name in ("worker", "reaper", "gateway"):
            service.stop(name)
        found = {name: service.log(name) for name in ("gateway", "worker", "reaper")}
    finally:
        service.close()
    for name, text in found.items():
        assert "canary" not in text, name
        assert key not in text and key[-43:] not in text and "b" * 43 not in text, name
        assert "127.0.0.1" not in text.partition("Uvicorn running")[0], name
        assert lines(text), name
        assert all({"time", "level", "logger", "event"} <= line.keys() for line in lines(text))
    posted = [line for line in lines(found["gateway"]) if line.get("route") == "/v1/videos"]
    assert [line["status"] for line in posted][-6:] == [202, 202, 202, 400, 404, 401]
    assert all(line["request_id"].startswith("req_") for line in posted)
    ends = [line for line in lines(found["worker"]) if "completed" in line["event"]]
    assert [line["job"] for line in ends] == made[:2]
    assert {(line["tenant"], line["model_digest"]) for line in ends} == {("acme", "scripted")}
    assert [line["attempt"] for line in ends] == [1, 2] and all(line["token"] for line in ends)
