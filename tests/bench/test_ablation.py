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
from engine import checkpoint
from engine.detector import Detector
from engine.dit import WanDiT
from engine.identity import IdentityEncoder
from engine.presets import MINIATURE, Preset
from training import sft
from training.convnet import save
from training.loop import LoopConfig
from training.world.identity import FACTOR_NAMES
from training.world.oracle import Oracle


def result(arm: str, seed: int, reached: float) -> dict[str, Any]:
    figures = dict.fromkeys(ablation.MEASURES, 0.5) | {"reached": reached}
    kinds = {kind: dict(figures) for kind in ablation.KINDS}
    return {"arm": arm, "seed": seed, "steps": 10, "minutes": 1.0, "kinds": kinds}


@pytest.mark.parametrize("arm", ablation.ARMS)
def test_each_arm_is_a_model_of_its_own(arm: str) -> None:
    study = ablation.Study(Path("x"), steps=7, seeds=1)
    config = ablation.arm_config(ablation.study_base("still"), study, arm, seed=3)
    assert config.loop.steps == 7 and config.loop.minutes is None and config.loop.seed == 3
    with torch.device("meta"):
        names = {n for n, _ in WanDiT(config.preset.dit).named_parameters()}
        full = {n for n, _ in WanDiT(MINIATURE.dit).named_parameters()}
    assert (names == full) == (arm == "full")
    assert names <= full


@pytest.mark.parametrize("kind", ablation.KINDS)
def test_hard_scenes_are_hard(kind: str) -> None:
    clips = ablation.hard_clips(kind, 2, still=True)
    assert {len(clip.scene.cast) for clip in clips} == {ablation.KINDS[kind]}
    assert all(len(clip.frames) == 1 for clip in clips)
    if kind == "detail":
        for clip in clips:
            one, other = (role.identity for role in clip.scene.cast)
            differing = {n for n in FACTOR_NAMES if getattr(one, n) != getattr(other, n)}
            assert differing and differing <= {"eyes", "mouth", "accessory", "accessory_color"}
    if kind == "twins":
        from training.evaluate import has_twins

        assert all(has_twins(clip) for clip in clips)
    if kind == "occlusion":
        assert all(clip.visibility.min() < ablation.HIDDEN for clip in clips)


def test_videos_can_be_hard_too() -> None:
    (clip,) = ablation.hard_clips("occlusion", 1)
    assert len(clip.frames) == 17 and (clip.visibility < ablation.HIDDEN).sum(axis=1).max() >= 2


def test_an_arm_that_was_measured_is_not_repeated(tmp_path: Path) -> None:
    known = result("full", 0, 0.4)
    study, base = ablation.Study(tmp_path), ablation.study_base("still")
    folder = ablation.study_folder(base, study) / "full" / "0"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(known))
    assert ablation.run_arm(base, study, "full", 0) == known


def test_another_budget_or_size_is_another_study(tmp_path: Path) -> None:
    study, base = ablation.Study(tmp_path), ablation.study_base("still")
    others = [
        ablation.study_folder(base, replace(study, steps=7)),
        ablation.study_folder(base, replace(study, batch_size=5)),
        ablation.study_folder(base, replace(study, cases=5)),
        ablation.study_folder(ablation.study_base("small"), study),
        ablation.study_folder(replace(base, draws=1), study),
    ]
    here = ablation.study_folder(base, study)
    assert len({here, *others}) == 6
    assert here == ablation.study_folder(ablation.study_base("still"), replace(study, seeds=9))


def test_the_report_tells_all_that_was_measured_in_this_study(tmp_path: Path) -> None:
    study, base = ablation.Study(tmp_path), ablation.study_base("still")
    for arm, seed in (("no tag", 0), ("full", 1), ("full", 0)):
        folder = ablation.study_folder(base, study) / ablation.slug(arm) / str(seed)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(result(arm, seed, 0.4)))
    found = [(each["arm"], each["seed"]) for each in ablation.known_results(base, study)]
    assert found == [("full", 0), ("no tag", 0), ("full", 1)]


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


def test_all_arms_begin_alike_and_their_beginning_has_seen_no_reference() -> None:
    for size in ablation.SIZES:
        base, study = ablation.study_base(size), ablation.Study(Path("x"))
        assert base.use_vlm_tokens and len(base.data.plan) == 1
        starts = {ablation.arm_config(base, study, arm, 0).base for arm in ablation.ARMS}
        assert starts == {ablation.study_folder(base, study) / "plain" / "dit.safetensors"}
        assert ablation.plain_config(base, study).preset.dit.subject_layers == 0


def test_the_shipped_blocks_may_be_begun_with_but_never_their_stream(
    tmp_path: Path, small_preset: Preset
) -> None:
    whole = WanDiT(small_preset.dit)
    model = tmp_path / "whole.safetensors"
    model.write_bytes(checkpoint.tensor_bytes(whole.state_dict()))
    ablation.write_start(model, tmp_path / "study" / ablation.START)
    plain = WanDiT(replace(small_preset.dit, subject_layers=0))
    sft.load_start(plain, tmp_path / "study" / ablation.START)
    theirs = whole.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, theirs[name].bfloat16().float())
    assert len(theirs) > len(plain.state_dict())
    study = ablation.Study(tmp_path, start=model)
    base = ablation.study_base("still")
    folder = ablation.study_folder(base, study)
    assert folder != ablation.study_folder(base, ablation.Study(tmp_path))
    assert ablation.plain_config(base, study).base == folder / ablation.START


def test_fewer_shards_may_be_used() -> None:
    assert ablation.study_base("still", shards=3).data.plan == ((0, 3),)


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
        height=32, width=48, reference_size=32, still=True,
    )  # fmt: skip
    loop = LoopConfig("study", steps=1, sheet_every=0)
    base = sft.SftConfig(loop, data, small_preset)
    start = tmp_path / "whole.safetensors"
    start.write_bytes(checkpoint.tensor_bytes(WanDiT(small_preset.dit).state_dict()))
    study = ablation.Study(
        tmp_path / "runs", steps=1, seeds=1, cases=2, sampler_steps=1, batch_size=2,
        instruments=instruments, start=start,
    )  # fmt: skip
    ablation.run_study(base, study, ["full"], tmp_path / "docs")
    ablation.run_study(base, study, ["no VLM tokens"], tmp_path / "docs")
    for arm in ("full", "no-vlm-tokens"):
        folder = ablation.study_folder(base, study) / arm / "0"
        found = json.loads((folder / "result.json").read_text())
        assert found["steps"] == 1 and found["kinds"].keys() == ablation.KINDS.keys()
    report = (tmp_path / "docs" / "ablation.md").read_text()
    assert "| full |" in report and "| no VLM tokens |" in report and "stills" in report
