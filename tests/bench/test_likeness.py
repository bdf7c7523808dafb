"""The bench of the judge: figures in closed form, and the shape of its answer on a random model."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import likeness
from bench.likeness import Told, doubled, summary, traded
from engine.candidates import seed_of
from engine.detector import Detector
from engine.folders import Manifest, read_manifest, save_folder
from engine.identity import IdentityEncoder
from engine.likeness import Likeness, SubjectLikeness
from tests.bench.test_identity import FILES
from training.convnet import save
from training.measure import Score
from training.world.clip import Clip, sample_clip
from training.world.oracle import Oracle


def told(judged: float, true: float, factors: float = 0.5, missing: bool = False) -> Told:
    """One clip with one subject."""
    score = Score(
        similarity_S=np.array([true]),
        missing_S=np.array([False]),
        swapped_S=np.array([False]),
        motion_S=np.array([True]),
        factors_SF=np.array([[factors, np.nan]]),
        copy_S=np.array([0.0]),
        background=True,
        light=True,
    )
    return Told(Likeness((SubjectLikeness("anna", judged, judged, missing),), 0.0), score)


def test_a_judge_that_knows_ranks_as_the_truth_does_and_gains_what_there_is() -> None:
    rng = np.random.default_rng(0)
    true_KN = rng.uniform(0.2, 0.8, (6, 4))
    figures = summary([[told(x, x, factors=x) for x in row] for row in true_KN])
    assert figures["rank"] == pytest.approx({"similarity": 1, "overall": 1, "mean": 1})
    assert figures["off"] == 0
    gain = true_KN.max(1) - true_KN[:, 0]
    for prefix in ("", "worst_", "factors_"):
        assert figures["best"][f"{prefix}base"] == pytest.approx(true_KN[:, 0].mean())
        assert figures["best"][f"{prefix}gain"] == pytest.approx(gain.mean())
        assert figures["best"][f"{prefix}most"] == pytest.approx(gain.mean())
    assert figures["best"]["gain_se"] == pytest.approx(gain.std(ddof=1) / 6**0.5)
    assert figures["overall"]["likest"][1] == pytest.approx(np.median(true_KN.max(1)))


def test_a_judge_that_has_it_backwards_loses() -> None:
    true = [0.5, 0.2, 0.8]
    figures = summary([[told(1 - x, x) for x in true], [told(1 - x, x) for x in true]])
    assert figures["rank"]["similarity"] == pytest.approx(-1)
    assert figures["best"]["gain"] == pytest.approx(0.2 - 0.5)
    assert figures["best"]["most"] == pytest.approx(0.3)
    assert figures["off"] == pytest.approx(0.6)


def test_missing_is_held_against_the_script_and_the_oracle() -> None:
    rows = [[told(0.2, 0.5, 0.1, missing=True), told(0.6, 0.6, 0.7)]] * 2
    missing = summary(rows)["missing"]
    assert (missing["judge"], missing["script"], missing["same"]) == (0.5, 0, 0.5)
    assert missing["factors"] == pytest.approx(0.1)
    assert missing["factors_others"] == pytest.approx(0.7)
    assert summary([[told(0.6, 0.6)]] * 2)["missing"]["factors"] is None


def test_controls_are_what_they_are_called() -> None:
    clip = sample_clip(0, split="heldout", num_subjects=2)
    exchanged = likeness.exchanged(clip)
    trade = traded(clip)
    assert np.array_equal(trade[:8], clip.frames[:8])
    assert np.array_equal(trade[8:], exchanged[8:])
    same = replace(clip.scene.cast[1], identity=clip.scene.cast[0].identity)
    twice = replace(clip, scene=replace(clip.scene, cast=(clip.scene.cast[0], same)))
    assert np.array_equal(doubled(clip), likeness.exchanged(twice))


@pytest.fixture
def judged_model(random_model: Path, tmp_path: Path) -> Path:
    """The random model with instruments that know nothing."""
    folder = tmp_path / "nets"
    for name, net in zip(FILES, (IdentityEncoder(), Detector(), Oracle()), strict=True):
        save(net, folder / name)
    for name in read_manifest(random_model).files:
        shutil.copy(random_model / name, folder / name)
    files = {path.name: path for path in folder.iterdir()}
    save_folder(tmp_path / "model", Manifest(preset="miniature"), files)
    return tmp_path / "model"


def test_last_line_is_one_object(
    judged_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(judged_model), "--cases", "2", "--candidates", "2", "--steps", "1"]
    assert likeness.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert {row["clips"] for row in result["subjects"].values()} == {4}
    assert set(result["subjects"]) == {"1", "2", "3"}
    assert result["cost"]["judge_share"] > 0
    alone = {"truth", "strangers", "absent"}
    assert set(result["controls"]["1"]) == alone
    assert set(result["controls"]["2"]) == alone | {"doubled", "traded", "exchanged"}


def test_frames_that_are_kept_are_not_made_again(tmp_path: Path) -> None:
    clip = sample_clip(0, split="heldout", num_subjects=2)
    asked = likeness.arguments(["--keep", str(tmp_path / "kept"), "--candidates", "3"])
    seeds: list[list[int]] = []

    def generate(clips: Sequence[Clip], given: Sequence[int]) -> np.ndarray:
        seeds.append(list(given))
        return np.stack([one.frames for one in clips])

    made = [likeness.made_of(asked, generate, "a" * 64, clip, 7) for _ in range(2)]
    assert seeds == [[seed_of(7, k) for k in range(3)]]
    assert np.array_equal(made[0], made[1]) and made[0].shape == (3, 17, 64, 96, 3)
    likeness.made_of(asked, generate, "b" * 64, clip, 7)
    assert len(seeds) == 2, "another model's"


def test_a_model_without_a_judge_is_told(
    random_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert likeness.main(["--model", str(random_model), "--cases", "2"]) == 2
    assert "brings no judge" in capsys.readouterr().err.replace("\n", " ")
