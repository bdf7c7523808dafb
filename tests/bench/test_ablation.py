"""The study: arms differ as named, hard scenes are hard, the report says what is true."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import ablation
from engine.dit import WanDiT
from engine.presets import MINIATURE, Preset
from training import sft
from training.convnet import save
from training.detector import Detector
from training.identity import IdentityEncoder
from training.loop import LoopConfig
from training.world.oracle import Oracle


def result(arm: str, seed: int, reached: float, swaps: float = 0.1) -> dict[str, Any]:
    figures = dict.fromkeys(ablation.MEASURES, 0.5) | {"reached": reached, "swaps": swaps}
    kinds = {kind: dict(figures) for kind in ablation.KINDS}
    return {"arm": arm, "seed": seed, "steps": 10, "minutes": 1.0, "kinds": kinds}


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_each_arm_is_a_model_of_its_own(arm: str) -> None:
    study = ablation.Study(Path("x"), steps=7, seeds=1)
    config = ablation.arm_config(ablation.study_base("small"), study, arm, seed=3)
    assert config.loop.steps == 7 and config.loop.minutes is None and config.loop.seed == 3
    with torch.device("meta"):
        names = {n for n, _ in WanDiT(config.preset.dit).named_parameters()}
        full = {n for n, _ in WanDiT(MINIATURE.dit).named_parameters()}
    assert (names == full) == (arm == "full")
    assert names <= full


@pytest.mark.parametrize("kind", ablation.KINDS)
def test_hard_scenes_are_hard(kind: str) -> None:
    clips = ablation.hard_clips(kind, 2)
    counts = {len(clip.scene.cast) for clip in clips}
    assert counts == {{"twins": 2, "occlusion": 3, "three": 3, "four": 4}[kind]}
    if kind == "twins":
        from training.evaluate import has_twins

        assert all(has_twins(clip) for clip in clips)
    if kind == "occlusion":
        assert all(clip.visibility.min() < ablation.HIDDEN for clip in clips)


def test_an_arm_that_was_measured_is_not_repeated(tmp_path: Path) -> None:
    known = result("full", 0, 0.4)
    folder = tmp_path / "full" / "0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(known))
    study = ablation.Study(tmp_path)
    assert ablation.run_arm(ablation.study_base("small"), study, "full", 0) == known


def test_the_report_has_means_spreads_and_paired_differences(tmp_path: Path) -> None:
    results = [result("full", 0, 0.5), result("full", 1, 0.7)]
    results += [result("no tag", 0, 0.4), result("no tag", 1, 0.6)]
    ablation.write_report(results, ablation.Study(tmp_path), tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    assert "0.600 ± 0.141" in text and "0.500 ± 0.141" in text
    assert "| no tag | -0.100" in text
    assert (tmp_path / "ablation.png").read_bytes()[:4] == b"\x89PNG"


def test_an_unknown_arm_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablation.main(["--arms", "full,nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def test_budgets_are_steps_or_minutes() -> None:
    with pytest.raises(SystemExit):
        ablation.arguments(["--steps", "3", "--minutes", "2"])
    study = replace(ablation.Study(Path("x")), steps=None, minutes=2.0)
    config = ablation.arm_config(ablation.study_base("small"), study, "full", 0)
    assert config.loop.steps is None and config.loop.minutes == 2.0


def test_generating_at_half_size_gives_frames_of_the_clips_size() -> None:
    clips = ablation.hard_clips("twins", 2)
    seen: list[tuple[int, ...]] = []

    def paints_grey(clips: Any, seeds: Any) -> np.ndarray:
        seen.append(clips[0].frames.shape)
        return np.full((len(clips), *clips[0].frames.shape), 90, np.uint8)

    frames = ablation.at_size(paints_grey, 32, 48)(clips, [0, 1])
    assert seen == [(17, 32, 48, 3)] and frames.shape == (2, 17, 64, 96, 3)
    assert (frames == 90).all()


def test_all_arms_share_fresh_weights_and_vlm_tokens() -> None:
    for size in ("small", "full"):
        base = ablation.study_base(size)
        assert base.base is None and base.use_vlm_tokens and len(base.data.plan) == 1


@pytest.fixture
def instruments(tmp_path: Path) -> Path:
    nets = {"identity": IdentityEncoder(), "detector": Detector(), "oracle": Oracle()}
    for name, net in nets.items():
        save(net, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_a_small_study_end_to_end(
    tmp_path: Path, encoder_folder: Path, small_preset: Preset, instruments: Path
) -> None:
    data = sft.DataConfig(
        tmp_path / "shards", encoder_folder, plan=((0, 1),), rows=4, batch_size=2,
        height=32, width=48, reference_size=32,
    )  # fmt: skip
    loop = LoopConfig("study", steps=1, sheet_every=0)
    base = sft.SftConfig(loop, data, small_preset)
    study = ablation.Study(
        tmp_path / "runs", steps=1, seeds=1, cases=2, sampler_steps=1, batch_size=2,
        instruments=instruments,
    )  # fmt: skip
    ablation.run_study(base, study, ["full", "no VLM tokens"], tmp_path / "docs")
    for arm in ("full", "no-vlm-tokens"):
        found = json.loads((tmp_path / "runs" / arm / "0" / "result.json").read_text())
        assert found["steps"] == 1 and found["kinds"].keys() == set(ablation.KINDS)
    assert "no VLM tokens" in (tmp_path / "docs" / "ablation.md").read_text()
