"""What identity guidance asks: trained on guesses, and written as a model folder brings it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.dit import WanDiT
from engine.errors import CheckpointError
from engine.presets import Preset
from engine.reader import FILE, LatentReader, Locator, readers_of
from training import convnet, guesses, readers
from training.data.shards import ShardFolder
from training.latent_reader import CONFIG
from training.report import read_log

CPU = torch.device("cpu")


@pytest.fixture
def folders(shards: tuple[ShardFolder, ShardFolder], tmp_path: Path) -> list[ShardFolder]:
    """Shards of its own, as guesses are written beside them."""
    own = [replace(folder, path=tmp_path / folder.path.name) for folder in shards]
    for folder, copy in zip(shards, own, strict=True):
        shutil.copytree(folder.path, copy.path)
    return own


def test_they_learn_and_a_model_folder_can_bring_them(
    folders: list[ShardFolder], small_preset: Preset, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    where = Locator(16, CONFIG)
    files = {name: tmp_path / f"{name}.safetensors" for name in ("dit", "who", "where")}
    convnet.save(WanDiT(small_preset.dit), files["dit"])
    convnet.save(LatentReader(16, CONFIG), files["who"])
    convnet.save(where, files["where"])
    given = (*folders, files["dit"], files["who"], files["where"])
    readers.run_on(*given, tmp_path / "run", steps=30, preset=small_preset)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    assert {"mean", "pictures", "guesses"} <= set(rows[-1])
    assert folders[1].has(guesses.COLUMN, 1)
    limits = replace(small_preset.limits, max_identity_scale=1.0)
    brought = readers_of(tmp_path / "run", replace(small_preset, limits=limits), CPU)
    assert brought is not None and (tmp_path / "run" / FILE).exists()
    for name, tensor in where.state_dict().items():
        torch.testing.assert_close(brought.where.state_dict()[name], tensor, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize("absent", ["who", "where"])
def test_what_is_missing_is_told_before_any_work(
    folders: list[ShardFolder], small_preset: Preset, tmp_path: Path, absent: str
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("dit", "who", "where")}
    convnet.save(WanDiT(small_preset.dit), files["dit"])
    convnet.save(LatentReader(16, CONFIG), files["who"])
    convnet.save(Locator(16, CONFIG), files["where"])
    files[absent].unlink()
    recipe = {"who": "miniature_latent_reader", "where": "miniature_locator"}[absent]
    with pytest.raises(CheckpointError, match=f"troupe train {recipe}"):
        readers.run_on(*folders, *files.values(), tmp_path / "run", preset=small_preset)
    assert not folders[1].has(guesses.COLUMN, 0)
