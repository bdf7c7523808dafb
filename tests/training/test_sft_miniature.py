"""The chain of recipes: each begins with what the one before leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from training import sft_miniature
from training.recipes import RECIPES


def test_each_recipe_begins_where_the_one_before_ends() -> None:
    small, still, full = (
        sft_miniature.miniature_small(), sft_miniature.miniature_still(), sft_miniature.miniature()
    )  # fmt: skip
    assert small.base is None
    for before, after in ((small, still), (still, full)):
        assert after.base == Path("runs") / before.loop.name / "dit.safetensors"
    names = [config.loop.name for config in (small, still, full)]
    assert set(names) <= RECIPES.keys() and len(set(names)) == 3
    assert len({config.data.shards for config in (small, still, full)}) == 3


def test_a_recipe_before_that_was_not_run_here_is_replaced_by_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = sft_miniature._from_shipped(sft_miniature.miniature())
    assert config.base == sft_miniature.SHIPPED / "dit.safetensors"
    made = Path("runs/miniature_sft_still/dit.safetensors")
    made.parent.mkdir(parents=True)
    made.touch()
    assert sft_miniature._from_shipped(sft_miniature.miniature()).base == made


def test_an_encoder_that_nobody_has_is_told_with_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="troupe train miniature_vae"):
        sft_miniature.gather_encoders(Path("runs"), Path("runs/encoders"))
