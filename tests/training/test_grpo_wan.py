"""Recipes of the published sizes: their numbers, what they ask for, and the path that they run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.checkpoint import read_tensors
from engine.pipeline import Engine
from engine.presets import PHANTOM_1_3B
from tests.engine.conftest import TOY_PRESET, random_dit, random_encoders
from tests.training import toy_dit
from training import grpo_wan
from training.grpo_loss import clip_range
from training.grpo_run import GrpoRun
from training.grpo_wan import WanGrpo
from training.report import read_log
from training.rewards.door import RewardError

RECIPES = [grpo_wan.grpo_1_3b, grpo_wan.grpo_14b, grpo_wan.grpo_phantom_1_3b]


@pytest.mark.parametrize("recipe", RECIPES)
def test_numbers_can_be_shared_out_to_the_cards(recipe: Callable[[], WanGrpo]) -> None:
    asked = recipe()
    loop = asked.run.config.for_loop(asked.num_processes)
    assert loop.accumulate > 0 and loop.device == "cuda" and loop.name == recipe.__name__


def test_what_the_papers_state() -> None:
    """ID-Crafter Table S.6 and A.2; Identity-GRPO section 4 and its code."""
    small, large, phantom = (recipe().run for recipe in RECIPES)
    assert small.config.loop.lr == 1e-5 and small.config.loop.betas == (0.9, 0.95)
    assert small.config.groups * small.config.num_kept == 32  # videos that an update learns from
    assert small.config.rollout.noise == ("id_crafter", 1.0) and small.rank == 0
    assert large.rank == large.alpha == 32 and large.config.loop.lr == 1e-4
    config = phantom.config
    assert (config.groups, config.group_size, config.rollout.steps) == (16, 8, 25)
    assert config.beta == 0.004 and config.rollout.noise == ("identity_grpo", 1.0)
    assert not config.rollout.same_noise and (phantom.rank, phantom.alpha) == (32, 32)
    asked = grpo_wan.grpo_phantom_1_3b()
    channels, frames, height, width = PHANTOM_1_3B.latent_shape(
        asked.width, asked.height, asked.num_frames
    )
    assert channels * frames * height * width == 224_640
    assert clip_range(config.clip, 224_640) == pytest.approx(1e-3, rel=0.06)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="grpo_14b/model/manifest.json"):
        grpo_wan.run_14b()
    engine = Engine(random_dit(TOY_PRESET.dit), random_encoders(), TOY_PRESET, "toy")
    with pytest.raises(RewardError, match="aesthetic"):
        grpo_wan.scorers(tmp_path, engine, grpo_wan.grpo_14b().composite)


def tasks(folder: Path, *lines: str) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(folder / "anna.png")
    (folder / "tasks.jsonl").write_text("\n".join(lines))


ANNA = json.dumps({"prompt": "@anna waves", "subjects": {"anna": "anna.png"}})


def test_the_path_that_they_run_with_tiny_weights(tmp_path: Path) -> None:
    """Requests from a file, two updates, adapters merged at the end."""
    tasks(tmp_path, ANNA, ANNA)
    engine = Engine(random_dit(TOY_PRESET.dit), random_encoders(), TOY_PRESET, "toy")
    before = {n: x.clone() for n, x in engine.dit.state_dict().items()}
    config = toy_dit.config()
    asked = replace(
        grpo_wan.grpo_14b(), run=GrpoRun(config, rank=4, guidance=toy_dit.ON),
        width=48, height=32, num_frames=5,
    )  # fmt: skip
    with torch.enable_grad():
        outcome = grpo_wan.train(asked, engine, toy_dit.brightness, tmp_path)
    assert outcome.finished and len(read_log(tmp_path / "log.jsonl")) == 2
    after = read_tensors(tmp_path / "dit.safetensors")
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[n], x.bfloat16().float()) for n, x in before.items())


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 2"), ('{"prompt": "x"}', "subjects"),
     ('{"prompt": "@bob", "subjects": {"anna": "anna.png"}}', "bob"),
     ('{"prompt": "@anna", "subjects": {"anna": "no.png"}}', "no.png")],
)  # fmt: skip
def test_a_line_that_is_no_task_is_named(tmp_path: Path, line: str, said: str) -> None:
    tasks(tmp_path, ANNA, line)
    engine = Engine(random_dit(TOY_PRESET.dit), random_encoders(), TOY_PRESET, "toy")
    asked = replace(grpo_wan.grpo_14b(), width=48, height=32, num_frames=5)
    with pytest.raises(ValueError, match=said):
        grpo_wan.read_tasks(tmp_path / "tasks.jsonl", engine, asked)
