"""The bench's arms are what they are called; a small study runs, and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import grpo
from bench.grpo import ARMS, Study, arm_of, in_order, small
from bench.grpo_report import ALL
from training import grpo_miniature

TRAINED = [arm for arm in ARMS if arm not in (*grpo.SHIPPED, "sft_more")]


@pytest.mark.parametrize("arm", TRAINED)
def test_each_arm_changes_what_it_is_called_after(arm: str) -> None:
    """And makes as many rollouts as the others, of the seed that it is asked for."""
    base = grpo_miniature.miniature()
    asked = arm_of(base, arm, seed=7)
    config, plain = asked.run.config, base.run.config
    assert config.loop.seed == 7 and config.loop.sheet_every == 0
    assert config.for_loop(1).accumulate > 0
    made, want = (c.loop.steps * c.groups * c.group_size for c in (config, plain))
    clips = arm.startswith("grpo_clips")
    assert made == pytest.approx(0.22 * want if clips else want, rel=0.1)
    differs = {
        "composite": asked.composite != base.composite,
        "groups": config.groups != plain.groups,
        "prompts": asked.tuned != base.tuned,
        "chance": asked.chance != base.chance,
        "noise": config.rollout.same_noise != plain.rollout.same_noise,
        "credit": config.rollout.by_frame != plain.rollout.by_frame,
        "frames": asked.num_frames != base.num_frames,
    }
    part = {"grpo_groups_4": "groups", "grpo_groups_16": "groups", "grpo_other_noise": "noise"}
    part |= {"grpo_tuned": "prompts", "grpo_chance": "chance"}
    changed = set() if arm == "grpo" else {part.get(arm, "composite")}
    if clips:
        changed = {"frames"} | ({"credit"} if arm == "grpo_clips" else set())
    assert {name for name, differ in differs.items() if differ} == changed


def test_what_the_question_hangs_on_comes_first() -> None:
    order = list(in_order(ARMS, 2))
    assert order[:6] == [(arm, seed) for seed in range(2) for arm in grpo.FIRST]
    assert len(order) == len(set(order)) == 2 * len(ARMS)


def test_another_budget_is_another_folder() -> None:
    one, two = Study(small()), Study(grpo_miniature.miniature())
    assert one.own != two.own and one.own == Study(small()).own


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert grpo.main(["--arms", "grpo,dpo"]) == 2
    assert "dpo" in capsys.readouterr().err


def test_a_small_study_runs_and_is_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--small", "--seeds", "1", "--arms", "sft,grpo,sft_more,sft_tuned", "--json"]
    asked += ["--folder", str(tmp_path)]
    with torch.enable_grad():
        assert grpo.main(asked) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(first["arms"]) == {"sft", "grpo", "sft_more", "sft_tuned"}
    assert first["arms"]["sft_tuned"]["minus_sft"]["amplitude"]["difference"] != 0
    for arm in ("grpo", "sft_more"):
        own = first["arms"][arm]
        assert set(own["mean"]) == set(own["minus_sft"]) == set(ALL)
        assert own["cpu_s"] > 0 and own["minus_sft"]["amplitude"]["difference"] != 0

    def never(*given: Any) -> None:
        raise AssertionError("an arm was repeated")

    monkeypatch.setattr(grpo, "train_arm", never)
    assert grpo.main(asked) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == first
