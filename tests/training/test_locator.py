"""Which frames it learns from, what it should see in them, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.convnet import load
from engine.detector import decode
from engine.reader import Locator
from training.data.shards import ShardFolder
from training.detector import SEEN, overlap
from training.latent_reader import CONFIG
from training.locator import FILE, draw_batch, examine, frames, run_on
from training.report import read_log
from training.world.clip import sample_clip


def test_frames_hold_those_who_can_be_seen_there(
    shards: tuple[ShardFolder, ShardFolder],
) -> None:
    stills, clips = shards
    seen = frames(clips, [1])
    assert seen.row_N.tolist() == [row for row in range(8, 16) for _ in range(5)]
    assert seen.frame_N.tolist() == list(range(5)) * 8
    for place in (0, 7, 38):
        row, frame = int(seen.row_N[place]), int(seen.frame_N[place])
        clip = sample_clip(row)
        covered = slice(0, 1) if frame == 0 else slice(4 * frame - 3, 4 * frame + 1)
        shown_S = clip.visibility[:, covered].mean(1) > SEEN
        cast = len(clip.scene.cast)
        assert seen.present_NK[place, :cast].tolist() == shown_S.tolist()
        assert not seen.present_NK[place, cast:].any()
        boxes_SX = torch.from_numpy(clip.boxes[:, covered]).float().mean(1)
        torch.testing.assert_close(seen.boxes_NKX[place, :cast], boxes_SX)
    assert frames(stills, [0]).frame_N.eq(0).all()


def test_what_should_be_seen_is_where_they_stand(
    shards: tuple[ShardFolder, ShardFolder],
) -> None:
    seen = frames(shards[1], [0])
    want = seen.targets(torch.arange(5))
    logit = torch.where(want.centre_Nhw, 8.0, -8.0)
    found = decode(torch.cat([logit[:, None], want.maps_N4hw], 1))
    for place in range(5):
        kept = found.boxes_NKS[place][found.score_NK[place] > 0]
        shown = seen.boxes_NKX[place][seen.present_NK[place]]
        assert (overlap(kept, shown).amax(0) > 0.99).sum() >= len(shown) - 1
    torch.manual_seed(0)
    latents, both = draw_batch([(seen, 3), (frames(shards[0], [0]), 2)])
    assert latents.shape == (5, 16, 16, 24) and both.heat_Nhw.shape == (5, 16, 24)


def test_it_learns_and_is_read_back(
    shards: tuple[ShardFolder, ShardFolder], tmp_path: Path
) -> None:
    run_on(*shards, tmp_path, steps=60)
    losses = [row["loss"] for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert losses[-1] < 0.6 * losses[0]
    locator = load(Locator(16, CONFIG), tmp_path / FILE, "miniature_locator")
    told = examine(locator, frames(shards[1], [1]))
    assert set(told) == {"recall", "precision", "recall_noisy", "precision_noisy"}
    assert all(0 <= share <= 1 for share in told.values())


def test_without_shards_it_says_which_recipe_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="troupe train miniature_shards"):
        run_on(ShardFolder(tmp_path / "a", still=True), ShardFolder(tmp_path / "b"), tmp_path)
