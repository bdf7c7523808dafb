"""The recipe on the shipped miniature, made small: a run, its looks, and that it goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint import load_strict, read_tensors
from engine.dit import WanDiT
from engine.presets import MINIATURE
from training import grpo_miniature
from training.grpo_epochs import load as load_epoch
from training.grpo_miniature import MiniatureGrpo
from training.heldout import FIGURES
from training.loop import Outcome
from training.report import read_log
from training.rewards.composite import Composite


def tiny(steps: int = 2) -> MiniatureGrpo:
    """Two updates of two groups of two, three steps, looked at after each on two cases."""
    base = grpo_miniature.miniature()
    config = base.run.config
    config = replace(
        config, loop=replace(config.loop, steps=steps, sheet_every=1), groups=2, group_size=2,
        rows=4, keep=0, rollout=replace(config.rollout, steps=3, window=1, reach=2),
    )  # fmt: skip
    run = replace(base.run, config=config)
    return replace(base, run=run, tasks=3, cases=2, steps=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("grpo_miniature")
    with torch.enable_grad():
        return folder, grpo_miniature.train(tiny(), folder)


def test_the_recipe_has_numbers_that_fit_together() -> None:
    asked = grpo_miniature.miniature()
    config = asked.run.config
    assert config.for_loop(1).accumulate * config.rows == (
        config.groups * config.num_kept * config.num_trained
    )
    assert asked.run.rank == 32 and asked.run.guidance.scale == MINIATURE.defaults.guidance
    assert asked.composite == Composite() and asked.num_frames == 1
    clips = grpo_miniature.on_clips(asked)
    assert clips.num_frames == MINIATURE.defaults.num_frames and clips.run.config.rollout.by_frame
    assert (clips.run.config.loop.steps, clips.run.config.keep) == (26, 0)


def test_clips_are_learned_from_frame_by_frame(tmp_path: Path) -> None:
    """An update on clips of two latent frames."""
    asked = replace(grpo_miniature.on_clips(tiny()), num_frames=5)
    config = replace(asked.run.config, loop=replace(asked.run.config.loop, sheet_every=0, steps=1))
    asked = replace(asked, run=replace(asked.run, config=config))
    with torch.enable_grad():
        outcome = grpo_miniature.train(asked, tmp_path)
    assert outcome.finished and outcome.step == 1
    (row,) = [row for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert row["live"] > 0 and row["ratio_off"] < 5e-3 and row["rollouts"] == 4
    (played,) = (tmp_path / "rollouts").iterdir()
    epoch = load_epoch(played)
    assert epoch.trajectory.by_frame and epoch.value_B.shape == (4, 2)


def test_a_run_logs_reward_time_and_what_it_is_judged_by(done: tuple[Path, Outcome]) -> None:
    rows = read_log(done[0] / "log.jsonl")
    updates = [row for row in rows if "loss" in row]
    looks = [row for row in rows if "held_reward" in row]
    assert [row["step"] for row in updates] == [row["step"] for row in looks] == [1, 2]
    for row in updates:
        shares = [row[f"share_{name}"] for name in ("rollout", "reward", "update")]
        assert sum(shares) == pytest.approx(1, abs=0.05) and min(shares) > 0
        assert row["rollouts"] == 4 and row["rollouts_per_s"] > 0
        assert 0 < row["naturalness"] < 1 and 0 < row["aesthetics"] < 1
    for look in looks:
        assert {f"held_{name}" for name in FIGURES} | {"held_apart"} <= look.keys()
    assert (done[0] / "curves.png").exists()


def test_sheets_show_the_start_above_today(done: tuple[Path, Outcome]) -> None:
    sheets = sorted((done[0] / "sheets").glob("*.png"))
    assert [sheet.name for sheet in sheets] == ["step_000001.png", "step_000002.png"]
    pixels = np.asarray(Image.open(sheets[-1]))
    assert pixels.shape == (2 * (128 + 4), 128 + 4 * 96, 3)
    start, today = pixels[:64, 128:].astype(int), pixels[64:128, 128:].astype(int)
    assert 0 < np.abs(start - today).mean() < 20  # same noise, another model


def test_what_is_left_is_the_shipped_model_with_adapters_merged(
    done: tuple[Path, Outcome],
) -> None:
    folder, outcome = done
    assert outcome.finished and outcome.step == 2
    dit = WanDiT(MINIATURE.dit)
    load_strict(dit, folder / "dit.safetensors")
    shipped = read_tensors(Path("models/miniature/dit.safetensors"))
    moved = [n for n, x in dit.state_dict().items() if not torch.equal(x, shipped[n].bfloat16())]
    assert (folder / "lora.safetensors").exists()
    assert moved and all(n.endswith("weight") and "blocks." in n for n in moved)
