"""Encoders on a worker of their own: the same videos, whoever dies. Real processes, real engine."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.test_service import content, ended, get, watch
from tests.e2e.test_service_engine import post
from tests.service.rig import Service, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


@pytest.fixture
def services(
    settings: Settings, random_model: Path, tmp_path: Path
) -> Iterator[tuple[Service, Service]]:
    """One whose worker encodes for itself, and one with a worker that encodes for the other."""
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    made = []
    for name in ("local", "remote"):
        changes = {
            "lease_s": 5.0,
            "model_dir": folder,
            "runtime": f"device=cpu,encoders={name}",
            "key_prefix": f"{settings.key_prefix}{name}",
            "blobs_url": str(tmp_path / name / "blobs"),
        }
        own = settings.model_copy(update=changes)
        made.append(Service(own, tmp_path / name, worker="workers.app"))
    try:
        yield made[0], made[1]
    finally:
        for service in made:
            service.close()


def roles(service: Service) -> dict[str, str]:
    workers = httpx.get(f"{service.url}/readyz", timeout=30).json()["workers"]
    return {worker["role"]: worker["state"] for worker in workers}


@pytest.mark.slow
def test_the_same_video_and_nothing_left_of_the_encodings(
    services: tuple[Service, Service]
) -> None:
    films = []
    for service in services:
        helpers = ("encoder",) if service is services[1] else ()
        service.start("gateway", "worker", "reaper", *helpers)
        service.wait_ready()
        job = post(service)
        last = watch(service, job["id"], ended)[-1]
        assert last["status"] == "completed", last
        films.append(last["frames_sha256"])
        assert content(service, job["id"]).content[4:8] == b"ftyp"
    assert films[0] == films[1]
    assert set(roles(services[1])) == {"denoise", "encode"}
    blobs = Path(services[1].settings.blobs_url)
    assert list(blobs.rglob("out/*.mp4")) and not list(blobs.rglob("encodings/*"))


def waiting_job(service: Service) -> str:
    """The id of a job that has been started and waits: nobody encodes."""
    service.start("gateway", "worker", "reaper")
    service.wait_listening()
    job: str = post(service)["id"]
    wait_for(lambda: get(service, job)["stage"] == "encode")
    return job


@pytest.mark.slow
def test_a_job_waits_for_an_encoder_and_outlives_its_death(
    services: tuple[Service, Service]
) -> None:
    service = services[1]
    job = waiting_job(service)
    ready = httpx.get(f"{service.url}/readyz", timeout=30)
    assert ready.status_code == 503
    assert "No worker encodes" in ready.json()["checks"]["workers"]["message"]

    service.start("slow_encoder")
    wait_for(lambda: roles(service).get("encode") == "busy")
    process = psutil.Process(service.pid("slow_encoder"))
    for child in process.children(recursive=True):
        child.kill()
    service.stop("slow_encoder", signal.SIGKILL)
    service.start("encoder")
    last = watch(service, job, ended)[-1]
    assert last["status"] == "completed" and last["attempts"] == 1, last


@pytest.mark.slow
def test_a_worker_that_only_waits_ends_at_once_and_the_job_costs_no_attempt(
    services: tuple[Service, Service]
) -> None:
    service = services[1]
    job = waiting_job(service)
    assert service.stop("worker", signal.SIGTERM, limit_s=60) == 0
    seen = get(service, job)
    assert (seen["status"], seen["attempts"]) == ("queued", 0), seen
    service.start("worker", "encoder")
    last = watch(service, job, ended)[-1]
    assert last["status"] == "completed" and last["attempts"] == 1, last
