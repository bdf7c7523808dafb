"""What a client is told of a job by the real processes: its events, and the webhook at its end."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.ledger import connect
from service.webhooks import Secrets
from tests.e2e.test_service import content, ended, get, post, watch
from tests.service.receiver import Receiver, receiving, reply
from tests.service.rig import Service, picture, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver(reply(200, body=picture()))) as receiver:
        yield receiver


@pytest.fixture
def service(settings: Settings, tmp_path: Path, receiver: Receiver) -> Iterator[Service]:
    (tmp_path / "model").mkdir()
    given = {
        "lease_s": 3.0,
        "model_dir": tmp_path / "model",
        "fetch_hosts": f"localhost:{receiver.port}",
    }
    service = Service(settings.model_copy(update=given), tmp_path)
    try:
        service.start("gateway", "worker", "reaper", "courier")
        service.wait_ready()
        yield service
    finally:
        service.close()


class Listener:
    """A browser's EventSource: comes back with the last id until it is told 204."""

    def __init__(self, service: Service, video_id: str) -> None:
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.calls = 0
        self._service = service
        self._id = video_id
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def join(self) -> list[str]:
        """The kinds, once all is told."""
        self._thread.join(180)
        assert not self._thread.is_alive()
        return [kind for _, kind, _ in self.events]

    def _listen(self) -> None:
        wait_for(self._call, every_s=0.2)

    def _call(self) -> bool:
        """One connection. Whether it was the last."""
        self.calls += 1
        last = {"last-event-id": self.events[-1][0]} if self.events else {}
        url = f"{self._service.url}/v1/videos/{self._id}/events"
        try:
            with httpx.stream("GET", url, headers=last, timeout=60) as answer:
                if answer.status_code == 204:
                    return True
                told: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    told[name] = value
                    if not line and "data" in told:
                        data = json.loads(told["data"])
                        self.events.append((told["id"], told["event"], data))
                        told = {}
        except httpx.TransportError:
            return False
        return False


def test_a_listener_is_told_everything_once_though_the_gateway_is_killed(service: Service) -> None:
    job = post(service, "@anna waves slow", steps="40").json()["id"]
    listener = Listener(service, job)
    wait_for(lambda: len(listener.events) > 5)
    service.stop("gateway", signal.SIGKILL)
    service.start("gateway")
    service.wait_listening()
    kinds = listener.join()
    assert get(service, job)["status"] == "completed"
    assert kinds[:2] == ["queued", "started"] and kinds[-1] == "completed"
    assert set(kinds[2:-1]) == {"progress"} and listener.calls >= 3
    percents = [data["progress"] for _, kind, data in listener.events if kind == "progress"]
    assert percents == sorted(percents)
    again = Listener(service, job)
    again.join()
    assert again.events == listener.events


def test_the_end_is_posted_to_the_webhook(
    service: Service, settings: Settings, receiver: Receiver
) -> None:
    url = f"http://localhost:{receiver.port}/hook"
    made = post(service, "@anna waves", webhook_url=url).json()["id"]
    stopped = post(service, "@anna waves slow", steps="200", webhook_url=url).json()["id"]
    watch(service, stopped, lambda video: video["status"] == "in_progress")
    httpx.post(f"{service.url}/v1/videos/{stopped}/cancel", timeout=60)
    wait_for(lambda: len(receiver.seen) == 2)
    (secret,) = Secrets(connect(settings), settings).valid("local")
    sdk = openai.OpenAI(api_key="none", webhook_secret=secret)
    told = {}
    for seen in receiver.seen:
        event = sdk.webhooks.unwrap(seen.body, seen.headers)
        told[json.loads(seen.body)["data"]["id"]] = (event.type, json.loads(seen.body)["data"])
    assert told[made] == ("video.completed", get(service, made))
    assert told[stopped] == ("video.failed", get(service, stopped))


def test_a_picture_by_address_is_fetched_and_used(service: Service, receiver: Receiver) -> None:
    subjects = [{"name": "anna", "image_url": f"http://localhost:{receiver.port}/anna.png"}]
    body = {"prompt": "@anna waves", "subjects": subjects}
    job = httpx.post(f"{service.url}/v1/videos", json=body, timeout=60)
    assert job.status_code == 202, job.text
    assert watch(service, job.json()["id"], ended)[-1]["status"] == "completed"
    assert content(service, job.json()["id"]).status_code == 200
    for address in ("http://localhost:1/x.png", "https://169.254.169.254/"):
        subjects[0]["image_url"] = address
        refused = httpx.post(f"{service.url}/v1/videos", json=body, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "subjects[0].image_url"
    assert [seen.path for seen in receiver.seen] == ["/anna.png"]
