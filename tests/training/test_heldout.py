"""Figures of held-out videos: what they are of known videos, and the alarm over a run's looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.pipeline import Engine
from training import evaluate
from training.heldout import FIGURES, HeldOut, Watch, means, spread
from training.measure import Instruments
from training.rewards.door import TOTAL
from training.world.clip import Clip

MODEL = Path("models/miniature")
Made = NDArray[np.uint8]


def brightness(frames: Tensor, samples: Sequence[Any]) -> dict[str, Tensor]:
    assert frames.dtype == torch.uint8 and frames.ndim == 5 and len(samples) == len(frames)
    return {TOTAL: frames.double().mean((1, 2, 3, 4)) / 255}


@pytest.fixture(scope="module")
def looks() -> HeldOut:
    """Of the shipped engine, in the place of whose videos the tests put known ones."""
    tools = Instruments.load(MODEL)
    cases = evaluate.prepare(evaluate.sample_clips(2, 2), tools)
    return HeldOut(Engine.load(MODEL), tools, brightness, cases, steps=1)


def shows(monkeypatch: pytest.MonkeyPatch, generate: evaluate.Generate) -> None:
    monkeypatch.setattr(evaluate, "from_engine", lambda *given, **named: generate)


def test_the_truth_and_strangers(looks: HeldOut, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle reads almost all factors of the truth, few of strangers; two equal videos have no
    diversity; worst is never above the mean; the reward is of these frames."""
    shows(monkeypatch, evaluate.truth)
    rows = looks.rows(looks.engine.dit)
    assert set(rows) == set(FIGURES) and {len(values) for values in rows.values()} == {2}
    true = means(rows)
    assert true["oracle_identity"] > 0.9 and true["copy_paste"] == pytest.approx(-1, abs=1e-6)
    assert true["diversity"] == 0 < true["amplitude"] and true["motion"] > 0.6
    assert all(a <= b for a, b in zip(rows["worst"], rows["oracle_identity"], strict=True))
    want = [case.clip.frames.mean() / 255 for case in looks.cases]
    assert rows[TOTAL] == pytest.approx(want)
    shows(monkeypatch, evaluate.strangers)
    other = means(looks.rows(looks.engine.dit))
    assert other["oracle_identity"] < true["oracle_identity"] - 0.3 and other["diversity"] > 0


def test_noise_is_of_case_video_and_study(
    looks: HeldOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def generate(clips: Sequence[Clip], seeds: Sequence[int]) -> Made:
        asked.append(tuple(seeds))
        return evaluate.truth(clips, seeds)

    shows(monkeypatch, generate)
    for noise in (0, 1):
        looks.noise = noise
        looks.rows(looks.engine.dit)
    looks.noise = 0
    flat = [seed for seeds in asked for seed in seeds]
    assert len(asked) == 4 and len(set(flat)) == len(flat) == 8


@pytest.mark.filterwarnings("error")
def test_a_run_whose_reward_rises_while_identity_falls_is_told(
    looks: HeldOut, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The reward of this test is brightness: white frames are worth most and show nobody."""
    shows(monkeypatch, evaluate.truth)
    watch = Watch(looks)
    watch.begin(looks.engine.dit)
    assert watch.look(looks.engine.dit)["held_apart"] == 0

    def white(clips: Sequence[Clip], seeds: Sequence[int]) -> Made:
        return np.stack([np.full_like(clip.frames, 250) for clip in clips])

    shows(monkeypatch, white)
    told = watch.look(looks.engine.dit)
    assert told["held_apart"] >= 3 and told["held_reward"] > 0.9
    watch.sheet(looks.engine.dit, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()
    with pytest.warns(UserWarning, match="oracle_identity"):
        watch.look(looks.engine.dit)


def test_spread() -> None:
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1 / 3**0.5) and np.isnan(spread([1.0]))
