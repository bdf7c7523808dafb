"""What the reader says of two clips, where it looks, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.crops import cut
from engine.presets import ReaderConfig
from engine.reader import CROP, LatentReader, cells, divergence
from training.data.shards import ShardFolder, Table
from training.gallery import SIZES
from training.latent_reader import (
    FILE,
    certainty,
    examples,
    identity_loss,
    load_reader,
    run_on,
)
from training.report import read_log
from training.world.clip import sample_clip

SMALL = ReaderConfig(SIZES, (8, 16), 48, (8, 16))


@pytest.fixture
def reader() -> Iterator[LatentReader]:
    torch.manual_seed(0)
    # oneDNN's backward of a few small crops has crashed here (torch 2.13 with AMX, two of six runs
    # after other convolutions in the same process); how a convolution is computed is not tested.
    with torch.backends.mkldnn.flags(enabled=False):
        yield LatentReader(16, SMALL).eval()


def test_divergence_is_cross_entropy_less_entropy_and_zero_between_equals() -> None:
    torch.manual_seed(0)
    true, seen = torch.randn(5, sum(SIZES)), torch.randn(5, sum(SIZES))
    want = torch.zeros(5)
    for p, q in zip(true.split(SIZES, 1), seen.split(SIZES, 1), strict=True):
        own = F.cross_entropy(p, p.softmax(1), reduction="none")
        want += F.cross_entropy(q, p.softmax(1), reduction="none") - own
    torch.testing.assert_close(divergence(true, seen, SIZES), want)
    assert divergence(true, true, SIZES).abs().max() < 1e-5


def test_certainty_falls_to_nothing_at_noise() -> None:
    t = torch.tensor([0.0, 0.75, 0.875, 1.0])
    assert certainty(t).tolist() == [1.0, 1.0, 0.5, 0.0]


def test_a_square_is_where_its_box_is() -> None:
    """A crop of latents whose channels are their own coordinates."""
    y, x = torch.meshgrid(torch.arange(16) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    latents = torch.stack([x, y])[None].float()
    crop = cut(latents, cells(torch.tensor([[24.0, 16.0, 64.0, 40.0]]), factor=4), CROP)
    torch.testing.assert_close(crop.mean((2, 3)), torch.tensor([[11.0, 7.0]]))
    assert float(crop[0, 0].max() - crop[0, 0].min()) == pytest.approx(40 / 4 * 1.2 * 11 / 12)


def test_identity_loss_counts_only_shown_subjects_inside_their_boxes(reader: LatentReader) -> None:
    torch.manual_seed(0)
    x0 = torch.randn(3, 16, 1, 16, 24)
    boxes = torch.tensor([[8.0, 8.0, 32.0, 40.0], [56.0, 16.0, 84.0, 48.0]])
    boxes = boxes[None, :, None].expand(3, 2, 1, 4)
    shown = torch.tensor([[True, True], [True, False], [False, False]])
    clean = x0.clone()
    clean[..., 14:21] += torch.randn(3, 16, 1, 16, 7)  # the second subject's box
    clean.requires_grad_()
    loss = identity_loss(reader, clean, x0, boxes, shown, 4)
    assert loss[0] > 1e-4 and loss[1].abs() < 1e-6 and loss[2] == 0
    loss.sum().backward()
    assert clean.grad is not None and clean.grad[0, ..., 14:21].any()
    assert not clean.grad[2].any() and not clean.grad[..., 23:].any()
    assert not identity_loss(reader, clean, x0, boxes, shown & False, 4).any()


def test_subjects_of_a_clip_share_its_loss(reader: LatentReader) -> None:
    torch.manual_seed(0)
    x0, clean = torch.randn(2, 1, 16, 1, 16, 24)
    boxes = torch.tensor([[8.0, 8.0, 32.0, 40.0], [56.0, 16.0, 84.0, 48.0]])[None, :, None]
    one = [
        identity_loss(reader, clean, x0, boxes, torch.tensor([mask]), 4)
        for mask in ([True, False], [False, True])
    ]
    both = identity_loss(reader, clean, x0, boxes, torch.tensor([[True, True]]), 4)
    torch.testing.assert_close(both, (one[0] + one[1]) / 2)


def test_frames_of_a_clip_share_its_loss(reader: LatentReader) -> None:
    """Each at the place where its subject is then."""
    torch.manual_seed(0)
    x0, clean = torch.randn(2, 1, 16, 2, 16, 24)
    boxes = torch.tensor([[8.0, 8.0, 32.0, 40.0], [56.0, 16.0, 84.0, 48.0]])[None, None]
    shown = torch.tensor([[True]])
    each = [
        identity_loss(reader, clean[:, :, [f]], x0[:, :, [f]], boxes[:, :, [f]], shown, 4)
        for f in range(2)
    ]
    both = identity_loss(reader, clean, x0, boxes, shown, 4)
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)


def test_examples_are_the_visible_characters_of_the_clips(
    shards: tuple[ShardFolder, ShardFolder],
) -> None:
    stills, clips = shards
    seen = examples(clips, [1])
    assert set(seen.row_N.tolist()) <= set(range(8, 16)) and seen.frame_N.unique().tolist() == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    assert seen.crops(torch.arange(3), 0.0).shape == (3, 16, CROP, CROP)
    number, frame = int(seen.row_N[0]), int(seen.frame_N[0])
    cast = [role.identity for role in sample_clip(number).scene.cast]
    assert tuple(seen.factors_NF[0].tolist()) in [tuple(vars(i).values()) for i in cast]
    table = Table(clips, ("video",))
    table.extend(2)
    covered = slice(0, 1) if frame == 0 else slice(4 * frame - 3, 4 * frame + 1)
    boxes = table.row(number)["boxes"][:, covered].mean(1)
    assert (boxes == seen.boxes_NX[0]).all(1).any()
    one_frame = examples(stills, [0])
    assert one_frame.frame_N.eq(0).all()
    for row, box in zip(one_frame.row_N.tolist(), one_frame.boxes_NX, strict=True):
        assert (torch.from_numpy(sample_clip(row, still=True).boxes[:, 0]) == box).all(1).any()


def test_it_learns_and_is_read_back(
    shards: tuple[ShardFolder, ShardFolder], tmp_path: Path
) -> None:
    run_on(*shards, tmp_path, steps=30)
    losses = [row["loss"] for row in read_log(tmp_path / "log.jsonl") if "loss" in row]
    assert losses[-1] < losses[0]
    reader = load_reader(tmp_path / FILE, 16)
    assert not reader.training and not any(p.requires_grad for p in reader.parameters())


def test_without_shards_it_says_which_recipe_makes_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="troupe train miniature_shards"):
        run_on(ShardFolder(tmp_path / "a", still=True), ShardFolder(tmp_path / "b"), tmp_path)
