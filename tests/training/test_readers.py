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
from engine.reader import CROP, FILE, LatentReader, Locator, divergence, readers_of
from training import convnet, guesses, latent_reader, readers
from training.data.shards import ShardFolder
from training.gallery import SIZES
from training.readers import CONFIG
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
    convnet.save(LatentReader(16, latent_reader.CONFIG), files["who"])
    convnet.save(where, files["where"])
    given = (*folders, files["dit"], files["who"], files["where"])
    readers.run_on(*given, tmp_path / "run", steps=30, hard_steps=10, preset=small_preset)
    first = read_log(tmp_path / "run" / "first" / "log.jsonl")
    losses = [row["loss"] for row in first if "loss" in row]
    assert losses[-1] < losses[0]
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert any({"moved", "plain"} <= set(row) for row in rows)
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
    convnet.save(LatentReader(16, latent_reader.CONFIG), files["who"])
    convnet.save(Locator(16, CONFIG), files["where"])
    files[absent].unlink()
    recipe = {"who": "miniature_latent_reader", "where": "miniature_locator"}[absent]
    with pytest.raises(CheckpointError, match=f"troupe train {recipe}"):
        readers.run_on(*folders, *files.values(), tmp_path / "run", preset=small_preset)
    assert not folders[1].has(guesses.COLUMN, 0)


def test_a_moved_crop_is_read_more_as_another_and_is_no_farther_than_the_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(readers, "NOISE", 0.0)
    torch.manual_seed(0)
    net = LatentReader(16, CONFIG).eval().requires_grad_(False)
    crops, reach = torch.randn(6, 16, CROP, CROP), torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    torch.manual_seed(1)
    moved = readers.deceptive(net, crops, reach)
    size = (moved - crops).square().mean((1, 2, 3)).sqrt()
    assert size[0] == 0 and bool((size <= reach + 1e-6).all())
    assert bool((size[1:] > reach[1:] / 5).all()), "the steps have a direction in common"
    torch.manual_seed(1)
    wanted = net(crops)[torch.randperm(6)]
    before, after = (divergence(wanted, net(x), SIZES) for x in (crops, moved))
    other = before > 0  # by lot, somebody may be asked to be itself
    assert bool((after < before)[1:][other[1:]].all())


def test_half_of_the_crops_are_moved_and_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """With moves of no size all are as they were; with large ones a reader that knows nothing of
    them is surprised."""
    torch.manual_seed(0)
    net, crops = LatentReader(16, CONFIG), torch.randn(16, 16, CROP, CROP)
    factors = torch.stack([torch.randint(n, (16,)) for n in SIZES], 1)
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        latent_reader.loss(net, (crops, factors))["loss"].backward()
        optimiser.step()
    surprises = {}
    for reach in (0.0, 2.0):
        monkeypatch.setattr(readers, "REACH", reach)
        torch.manual_seed(1)
        told = readers.standing(net, (crops, factors))
        assert told["loss"] == (told["moved"] + told["plain"]) / 2 and net.training
        surprises[reach] = float((told["moved"] - told["plain"]).detach())
    assert surprises[2.0] > surprises[0.0] + 1
