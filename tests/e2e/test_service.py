"""The service as its real processes: HTTP in, a real Redis and Celery between, a video out.

Only the engine is scripted (tests/workers/scripted.py), because these are tests of the queue.
"""

import io
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from engine.video import Video
from tests.service.rig import Service, picture, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "model").mkdir()
    quick = settings.model_copy(update={"lease_s": 3.0, "model_dir": tmp_path / "model"})
    service = Service(quick, tmp_path)
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def running(service: Service) -> Service:
    service.start("gateway", "worker", "reaper")
    service.wait_ready()
    return service


def post(service: Service, prompt: str, **fields: str) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/videos",
        data={"prompt": prompt, "subjects": '[{"name": "anna", "image": "a.png"}]', **fields},
        files=[("images", ("a.png", picture(), "image/png"))],
        timeout=60,
    )


def get(service: Service, video_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{service.url}/v1/videos/{video_id}", timeout=60)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def watch(
    service: Service, video_id: str, until: Callable[[dict[str, Any]], bool], limit_s: float = 180
) -> list[dict[str, Any]]:
    """Every answer until one of them pleases."""
    seen: list[dict[str, Any]] = []

    def look() -> bool:
        seen.append(get(service, video_id))
        return until(seen[-1])

    wait_for(look, limit_s)
    return seen


def ended(video: dict[str, Any]) -> bool:
    return video["status"] in {"completed", "failed"}


def worker_child(service: Service) -> int:
    children = psutil.Process(service.pid("worker")).children(recursive=True)
    return next(child.pid for child in children if "celery" in " ".join(child.cmdline()))


def content(service: Service, video_id: str, variant: str = "video") -> httpx.Response:
    address = f"{service.url}/v1/videos/{video_id}/content"
    return httpx.get(address, params={"variant": variant}, timeout=60)


def test_a_job_goes_in_and_a_video_comes_out(running: Service) -> None:
    accepted = post(running, "@anna waves slow", steps="8")
    assert accepted.status_code == 202, accepted.text
    seen = watch(running, accepted.json()["id"], ended)
    last = seen[-1]
    assert last["status"] == "completed", last
    assert last["progress"] == 100 and last["attempts"] == 1 and last["model_digest"] == "scripted"
    percents = [video["progress"] for video in seen]
    assert percents == sorted(percents) and len(set(percents)) > 3
    statuses = [video["status"] for video in seen]
    order = ["queued", "in_progress", "completed"]
    assert statuses == sorted(statuses, key=order.index)
    assert any(video["preview"] for video in seen)
    film = Video.from_mp4(content(running, last["id"]).content)
    assert (len(film.frames), film.fps) == (last["num_frames"], last["fps"])
    for variant, form in (("thumbnail", "JPEG"), ("spritesheet", "PNG")):
        data = content(running, last["id"], variant).content
        assert Image.open(io.BytesIO(data)).format == form
    assert last["timings"]["denoise_s"] >= 0.5


def test_a_killed_worker_child_costs_time_and_not_the_job(running: Service) -> None:
    job = post(running, "@anna waves slow", steps="20").json()
    watch(running, job["id"], lambda video: video["step"] and video["step"] >= 3)
    os.kill(worker_child(running), signal.SIGKILL)
    last = watch(running, job["id"], ended)[-1]
    assert last["status"] == "completed", last
    assert last["attempts"] == 2
    books = httpx.get(f"{running.url}/readyz", timeout=60).json()["books"]
    assert books["balanced"] and books["completed"] == 1
