"""The product's own worker with the real engine, on random weights: nothing is scripted here.

What comes out is noise, but it comes out of every real stage; the trained weights are judged
elsewhere.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from engine.video import Video
from tests.e2e.test_service import content, ended, get, watch
from tests.service.rig import Service, picture, redis_url, settings, wait_for
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


@pytest.fixture
def service(settings: Settings, random_model: Path, tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "model"
    shutil.copytree(random_model, folder)
    own = settings.model_copy(
        update={"lease_s": 5.0, "model_dir": folder, "encodings_dir": tmp_path / "kept"}
    )
    service = Service(own, tmp_path, worker="workers.app")
    try:
        yield service
    finally:
        service.close()


def photo() -> bytes:
    """A photograph of a person, where scikit-image is installed; any picture else."""
    try:
        import skimage
    except ModuleNotFoundError:
        return picture("peru", (300, 400), "JPEG")
    return (Path(skimage.__file__).parent / "data" / "astronaut.png").read_bytes()


def post(service: Service, steps: str = "6") -> dict[str, Any]:
    answer = httpx.post(
        f"{service.url}/v1/videos",
        data={"prompt": "@anna meets @bob", "seed": "5", "steps": steps, "num_frames": "9"},
        files=[
            ("input_reference", ("anna.png", photo(), "image/png")),
            ("input_reference", ("bob.png", picture("red"), "image/png")),
        ],
        timeout=60,
    )
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_photograph_goes_in_and_a_video_comes_out_twice_the_same(
    service: Service, tmp_path: Path
) -> None:
    service.start("gateway", "worker", "reaper")
    service.wait_ready()
    films, frames = [], []
    for _ in range(2):
        job = post(service)
        assert any("only the drawn world" in note for note in job["warnings"])
        seen = watch(service, job["id"], ended)
        assert seen[-1]["status"] == "completed", seen[-1]
        assert [one["progress"] for one in seen] == sorted(one["progress"] for one in seen)
        assert seen[-1]["timings"]["denoise_s"] > 0 and len(seen[-1]["model_digest"]) == 64
        assert seen[-1]["forwards"]["computed"] == seen[-1]["forwards"]["asked"] > 0
        films.append(content(service, job["id"]).content)
        frames.append(seen[-1]["frames_sha256"])
    assert frames[0] == frames[1]  # the files differ in the job that each is signed for
    kept = list((tmp_path / "kept").glob("*/*.safetensors"))
    told = "the prompt with its pictures, each picture, and the empty prompt: encoded once"
    assert len(kept) == 2 + len(job["subjects"]), told
    film = Video.from_mp4(films[0])
    assert len(film.frames) == 9 and film.fps == 8 and min(film.size) >= 256


def test_a_flipped_byte_is_told_and_its_mending_is_enough(service: Service, tmp_path: Path) -> None:
    weights = tmp_path / "model" / "vae.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    service.start("gateway", "worker", "reaper")
    service.wait_listening()

    def complaint() -> str:
        checks = httpx.get(f"{service.url}/readyz", timeout=60).json()["checks"]
        return str(checks["workers"]["message"])

    wait_for(lambda: "unhealthy" in complaint())
    assert "vae.safetensors is not the file that the manifest lists" in complaint()
    job = post(service)
    assert get(service, job["id"])["status"] == "queued"
    weights.write_bytes(good)
    assert watch(service, job["id"], ended)[-1]["status"] == "completed"


def test_a_worker_killed_in_the_middle_costs_a_few_steps_and_changes_nothing(
    service: Service,
) -> None:
    """The miniature's own steps, a real SIGKILL of the pool's child, another child to go on."""
    service.start("gateway", "worker", "reaper")
    service.wait_ready()
    undisturbed = watch(service, post(service, steps="40")["id"], ended)[-1]
    job = post(service, steps="40")
    watch(service, job["id"], lambda video: bool(video["step"]) and video["step"] >= 30)
    for child in psutil.Process(service.pid("worker")).children():
        child.kill()
    seen = watch(service, job["id"], ended)
    assert (seen[-1]["status"], seen[-1]["attempts"]) == ("completed", 2), seen[-1]
    assert seen[-1]["frames_sha256"] == undisturbed["frames_sha256"]
    assert [one["progress"] for one in seen] == sorted(one["progress"] for one in seen)
    again = [one["step"] for one in seen if one["attempts"] == 2 and one["step"]]
    assert again and min(again) > 5, "it began anew"
