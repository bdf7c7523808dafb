"""Guesses are the transformer's own, of the right clips, and made once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from engine import flow
from engine.dit import WanDiT
from engine.presets import Preset
from training import guesses, sft
from training.data.loader import Loader
from training.data.shards import ShardFolder, Table
from training.latent_reader import examples

COLUMNS = ("video", "refs", "text")


@pytest.fixture(scope="module")
def clips(
    shards: tuple[ShardFolder, ShardFolder], tmp_path_factory: pytest.TempPathFactory
) -> ShardFolder:
    """Shards of its own, as guesses are written beside them."""
    own = replace(shards[1], path=tmp_path_factory.mktemp("guesses") / "shards")
    shutil.copytree(shards[1].path, own.path)
    return own


@pytest.fixture(scope="module")
def dit(small_preset: Preset) -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(small_preset.dit)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def test_a_guess_is_where_the_velocity_points(clips: ShardFolder, dit: WanDiT) -> None:
    """Made again here, by the same dice, one clip at a time: with references, then without."""
    table = Table(clips, COLUMNS)
    table.extend(2)
    loader = Loader(table, 8, ((0, 2),), mixed=True)
    made = guesses.of_shard(loader, dit, 1)
    assert made.shape == (8, guesses.DRAWS, *table.row(0)["latents"].shape)
    dice = torch.Generator().manual_seed(1)
    batch = loader.rows(range(8, 16))
    for draw, shown in enumerate((sft.subject_inputs(batch), None)):
        t_B = 0.2 + (0.98 - 0.2) * torch.rand(8, generator=dice).double()
        assert 0.2 <= t_B.min() < t_B.max() <= 0.98
        x_t = flow.add_noise(batch.x0_BCFHW, torch.randn(batch.x0_BCFHW.shape, generator=dice), t_B)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            v = dit(x_t, t_B, batch.text_BTM, shown)
        torch.testing.assert_close(made[:, draw], flow.predict_x0(x_t, v.float(), t_B))
    assert not torch.equal(made[:, 0], made[:, 1])


def test_they_are_made_once_and_again_for_another_transformer(
    clips: ShardFolder, dit: WanDiT
) -> None:
    told: list[str] = []
    assert guesses.write(clips, COLUMNS, dit, "one", 2, told.append) == 2
    assert len(told) == 2 and "clips/s" in told[0]
    assert guesses.write(clips, COLUMNS, dit, "one", 2) == 0
    assert guesses.write(clips, COLUMNS, dit, "other", 1) == 1
    with pytest.raises(ValueError, match="other weights"):
        guesses.guessed(examples(clips, [0, 1]))
    assert guesses.write(clips, COLUMNS, dit, "other", 2) == 1


def test_characters_are_looked_for_where_the_true_clip_has_them(
    clips: ShardFolder, dit: WanDiT
) -> None:
    guesses.write(clips, COLUMNS, dit, "other", 2)
    true = examples(clips, [1])
    seen = guesses.guessed(true)
    for mine, own in ((seen.row_N, true.row_N), (seen.boxes_NX, true.boxes_NX)):
        assert torch.equal(mine, own)
    row, frame = int(seen.row_N[0]), int(seen.frame_N[0])
    draws = seen.table.row(row)[guesses.COLUMN]
    torch.manual_seed(0)
    found = set()
    for _ in range(20):
        drawn = seen.latents(row, frame)
        (draw,) = (d for d in range(2) if torch.equal(drawn, draws[d][:, frame]))
        found.add(draw)
    assert found == {0, 1}
    crops = seen.crops(torch.arange(3), 0.0)
    assert crops.shape == true.crops(torch.arange(3), 0.0).shape
