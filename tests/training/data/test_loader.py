"""Batches are functions of their number; dropout takes what it says."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from training.data.loader import Batch, Dropout, Loader, drop_conditions
from training.data.precompute import NULL
from training.data.shards import ShardFolder, Table

ROWS = 40


def write(folder: ShardFolder, shard: int) -> None:
    torch.manual_seed(shard)
    counts = torch.arange(ROWS) % 4 + 1
    latents = torch.randn(ROWS, 2, 3, 4, 6)
    folder.write("video", shard, {"latents": latents, "boxes": torch.rand(ROWS, 4, 9, 4)}, "w")
    refs = torch.randn(ROWS, 4, 2, 4, 4)
    folder.write("refs", shard, {"refs": refs, "num_subjects": counts}, "w")
    text = {"text": torch.randn(ROWS, 5, 3), "tags": torch.randn(ROWS, 4, 3)}
    folder.write("text", shard, text, "w")
    folder.write("vlm", shard, {"vlm": torch.randn(ROWS, 40, 3), "num_vlm": counts * 5 + 1}, "w")


@pytest.fixture
def folder(tmp_path: Path) -> ShardFolder:
    folder = ShardFolder(tmp_path, rows=ROWS)
    for shard in range(3):
        write(folder, shard)
    save_file({"text": torch.full((5, 3), 7.0)}, tmp_path / NULL)
    return folder


def loader(folder: ShardFolder, **changes: object) -> Loader:
    settings: dict = {"plan": ((0, 1), (10, 3)), "seed": 4, **changes}
    return Loader(Table(folder), 6, **settings)


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_is_a_function_of_its_number(folder: ShardFolder) -> None:
    one, two = loader(folder), loader(folder)
    ahead = two.batch(17)  # out of order, and after more shards were opened
    assert same(one.batch(3), two.batch(3))
    assert same(one.batch(17), ahead)
    assert not same(one.batch(3), one.batch(4))
    assert not same(one.batch(3), loader(folder, seed=5).batch(3))


def test_each_batch_has_one_number_of_subjects_and_all_occur(folder: ShardFolder) -> None:
    batches = [loader(folder).batch(i) for i in range(40)]
    assert all(batch.subject_mask_BS.all() for batch in batches)
    assert {batch.refs_BSCHW.shape[1] for batch in batches} == {1, 2, 3, 4}


def test_successive_batches_can_be_alike_in_their_number(folder: ShardFolder) -> None:
    pairs = loader(folder, alike=2)
    widths = [pairs.batch(i).refs_BSCHW.shape[1] for i in range(40)]
    assert widths[::2] == widths[1::2] and len(set(widths)) == 4
    assert not torch.equal(pairs.batch(0).x0_BCFHW, pairs.batch(1).x0_BCFHW)


def test_mixed_batches_are_padded_and_masked(folder: ShardFolder) -> None:
    batch = loader(folder, mixed=True).batch(0)
    counts = batch.subject_mask_BS.sum(1)
    assert counts.max() == batch.refs_BSCHW.shape[1] and counts.min() < counts.max()


def test_the_plan_says_which_rows_may_come(folder: ShardFolder) -> None:
    few, many = loader(folder), loader(folder)
    table = Table(folder)
    table.extend(1)
    first = {float(table.row(r)["latents"].sum()) for r in range(ROWS)}
    seen = {float(x.sum()) for i in range(10) for x in few.batch(i).x0_BCFHW}
    assert seen <= first
    later = {float(x.sum()) for i in range(10, 20) for x in many.batch(i).x0_BCFHW}
    assert not later <= first


def test_it_waits_for_the_shards_of_its_plan(folder: ShardFolder, tmp_path: Path) -> None:
    waiting = loader(folder, plan=((0, 4),))
    threading.Timer(0.3, write, (folder, 3)).start()
    assert len(waiting.batch(0).x0_BCFHW) == 6
    with pytest.raises(FileNotFoundError, match="shard 4"):
        loader(folder, plan=((0, 5),), patience_s=0.0).batch(0)


def test_vlm_masks_follow_the_lengths(folder: ShardFolder) -> None:
    batch = loader(folder).batch(0)
    num = batch.refs_BSCHW.shape[1]
    assert batch.vlm_mask_BV.sum(1).tolist() == [num * 5 + 1] * 6
    assert batch.vlm_BVM.shape[1] % 16 == 0


def _dropped(batch: Batch, before: Batch) -> tuple[Tensor, Tensor, Tensor]:
    text = (batch.text_BTM == batch.null_TM).all(-1).all(-1)
    return text, ~batch.subject_mask_BS.any(1), ~batch.vlm_mask_BV.any(1)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("everything", (True, True, True)),
        ("subjects", (False, True, True)),
        ("vlm", (False, False, True)),
        ("text", (True, False, False)),
    ],
)
def test_each_kind_of_dropout_takes_what_it_names(
    folder: ShardFolder, kind: str, expected: tuple[bool, bool, bool]
) -> None:
    none = {"everything": 0.0, "subjects": 0.0, "vlm": 0.0, "text": 0.0}
    before = loader(folder).batch(0)
    after = drop_conditions(before, Dropout(**{**none, kind: 1.0}))
    assert tuple(bool(gone.all()) for gone in _dropped(after, before)) == expected
    assert same(drop_conditions(before, Dropout(**none)), before)


def test_dropout_rates(folder: ShardFolder) -> None:
    torch.manual_seed(0)
    batch = loader(folder).batch(0)
    gone = torch.stack(
        [torch.stack(_dropped(drop_conditions(batch, Dropout()), batch)) for _ in range(400)]
    )
    text, subjects, vlm = gone.float().mean((0, 2)).tolist()
    assert abs(text - 0.15) < 0.03 and abs(subjects - 0.15) < 0.03 and abs(vlm - 0.25) < 0.03
