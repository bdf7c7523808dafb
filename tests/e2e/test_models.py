"""From training to traffic in one running service: a few updates of GRPO, published, tried on a
share of the jobs, promoted and taken back, while jobs come in all the time.

Gateway, worker and reaper are processes, the model is the shipped miniature, the training is
`training.grpo`. Which weights made a video is told by its frames, not by what the service says.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from typer.testing import CliRunner

from engine.adapters import merge
from engine.encoder import Encoder
from engine.flow import Noise
from engine.folders import read_manifest
from engine.pipeline import Engine
from engine.spec import Spec
from tests.e2e.test_service import ended, get
from tests.service.rig import ROOT, Service, redis_url, settings, wait_for
from training import lora, publish_adapter
from training.grpo import train
from training.grpo_config import GrpoConfig
from training.loop import LoopConfig
from training.policy import EnginePolicy, Task
from training.rewards.door import TOTAL
from training.rollout import RolloutConfig
from troupe.main import app
from workers.settings import Settings

__all__ = ["redis_url", "settings"]
SHIPPED = ROOT / "models" / "miniature"
SMALL = {"steps": 2, "num_frames": 5, "width": 32, "height": 32}
PROMPT, SEEDS = "a red ball", (1, 2)


class Traffic:
    """Two customers, who ask for the next small video as soon as they have theirs."""

    def __init__(self, service: Service) -> None:
        self.videos: list[dict[str, Any]] = []  # as they ended
        self._service = service
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,)) for seed in SEEDS]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def digest(self) -> str:
        """That of the video that ended last."""
        return str(self.videos[-1]["model_digest"]) if self.videos else ""

    def made(self, seed: int, model: str = "miniature") -> dict[str, Any]:
        """One video, as it ended."""
        size = f"{SMALL['width']}x{SMALL['height']}"
        asked = {"prompt": PROMPT, "seed": seed, "size": size, "steps": 2, "num_frames": 5}
        url = f"{self._service.url}/v1/videos"
        answer = httpx.post(url, json=asked | {"model": model}, timeout=60)
        assert answer.status_code == 202, answer.text
        video: dict[str, Any] = answer.json()
        while not ended(video):
            time.sleep(0.1)
            video = get(self._service, video["id"])
        return video

    def _ask(self, seed: int) -> None:
        while not self._enough.is_set():
            self.videos.append(self.made(seed))


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    address = f"{tmp_path}/registry#stable"
    own = settings.model_copy(update={"lease_s": 10.0, "model_dir": address})
    service = Service(own, tmp_path, worker="workers.app")
    try:
        yield service
    finally:
        service.close()


def models(tmp_path: Path, *arguments: str) -> str:
    """`troupe models`, as an operator types it."""
    told = CliRunner().invoke(app, ["models", *arguments, "--at", f"{tmp_path}/registry"])
    assert told.exit_code == 0, told.output
    return told.stdout.strip()


def brightness(frames_BTHWC: torch.Tensor, samples: Any) -> dict[str, torch.Tensor]:
    return {TOTAL: frames_BTHWC.double().mean((1, 2, 3, 4)) / 255}


def reinforced(folder: Path) -> Path:
    """Two updates towards brighter videos; the adapter's folder."""
    engine = Engine.load(SHIPPED)
    spec = Spec.of(engine.preset, PROMPT, **SMALL)
    task = Task.of(spec, (), Encoder(engine.encoders, engine.preset, engine.digest, None))
    loop = LoopConfig(
        "bright", steps=2, lr=1e-2, muon_lr=None, warmup=1, schedule="constant", ema=0.0,
        bf16=False, sheet_every=0, log_every=1,
    )  # fmt: skip
    rollout = RolloutConfig(2, noise=Noise("exact", 0.7))
    config = GrpoConfig(loop, rollout, group_size=4, groups=1, updates=2, rows=4)
    torch.manual_seed(0)
    lora.add(engine.dit, rank=2)
    policy = EnginePolicy(engine.encoders, engine.preset)
    train(config, policy, brightness, [task], engine.dit, folder)
    lora.save(engine.dit, folder / "lora.safetensors")
    publish_adapter.publish(
        SHIPPED, folder / "lora.safetensors", folder / "adapter", recipe={"run": "bright"},
        anyway=True,
    )  # fmt: skip
    return folder / "adapter"


def test_from_training_to_traffic_and_back(service: Service, tmp_path: Path) -> None:
    first = models(tmp_path, "push", str(SHIPPED))
    models(tmp_path, "promote", first)
    service.start("gateway", "worker", "reaper")
    adapter = reinforced(tmp_path / "run")
    merged = merge(SHIPPED, adapter, tmp_path / "whole").digest()
    service.wait_ready()
    traffic = Traffic(service)
    try:
        wait_for(lambda: traffic.digest() == first)
        second = models(tmp_path, "push", str(adapter))
        models(tmp_path, "canary", second, "--share", "0.5", "--worse")
        wait_for(lambda: traffic.digest() == merged)
        wait_for(lambda: traffic.digest() == first)  # the other half
        models(tmp_path, "promote", "--worse")
        seen = len(traffic.videos)
        wait_for(lambda: digests(traffic.videos[seen:])[-4:] == [merged] * 4)
        models(tmp_path, "rollback")
        seen = len(traffic.videos)
        wait_for(lambda: digests(traffic.videos[seen:])[-4:] == [first] * 4)
        # Beside the base, for those who ask for it.
        models(tmp_path, "promote", second, "--channel", "bright")
        wait_for(lambda: "bright" in offered(service))
        traffic.videos += [traffic.made(seed, "bright") for seed in SEEDS]
    finally:
        traffic.finish()
    assert read_manifest(adapter).evaluation["golden"]
    assert "quarantine" not in service.log("worker")
    assert {video["status"] for video in traffic.videos} == {"completed"}
    assert {video["attempts"] for video in traffic.videos} == {1}
    seen_frames = {
        (video["model_digest"], video["seed"], video["frames_sha256"]) for video in traffic.videos
    }
    assert {video["model_digest"] for video in traffic.videos if video["model"] == "bright"} == {
        merged
    }
    assert seen_frames == made_alone(SHIPPED) | made_alone(tmp_path / "whole")


def offered(service: Service) -> list[str]:
    answer = httpx.get(f"{service.url}/v1/models", timeout=60).json()
    return [one["id"] for one in answer["data"]]


def digests(videos: list[dict[str, Any]]) -> list[str]:
    return [video["model_digest"] for video in videos]


def made_alone(folder: Path) -> set[tuple[str, int, str]]:
    """What these weights make of the requests in an engine that has never had others."""
    engine, found = Engine.load(folder), set()
    for seed in SEEDS:
        video = engine.generate(Spec.of(engine.preset, PROMPT, **SMALL, seed=seed), ())
        found.add((engine.digest, seed, video.sha256()))
    return found
