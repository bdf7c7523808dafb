"""Columns of a table on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training.data.shards import ShardFolder, Table


def write(folder: ShardFolder, shard: int, weights: str = "w") -> None:
    rows = torch.arange(folder.rows) + shard * folder.rows
    folder.write("refs", shard, {"num_subjects": rows % 4 + 1}, weights)
    folder.write("text", shard, {"text": rows.float()[:, None]}, weights)


def test_rows_across_shards(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, rows=3)
    for shard in range(3):
        write(folder, shard)
    table = Table(folder, ("refs", "text"))
    table.extend(2)
    table.extend(3)
    assert [float(table.row(r)["text"]) for r in range(9)] == list(range(9))
    assert table.num_subjects().tolist() == [r % 4 + 1 for r in range(9)]


def test_a_gap_ends_what_is_ready(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, rows=3)
    for shard in (0, 1, 3):
        write(folder, shard)
    assert folder.num_ready(("refs", "text")) == 2
    assert folder.num_ready(("refs", "vlm")) == 0


def test_a_column_is_of_one_encoder(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, rows=3)
    write(folder, 0)
    write(folder, 1, "other")
    with pytest.raises(ValueError, match="other weights"):
        Table(folder, ("refs", "text")).extend(2)


def test_headers_tell_which_clips_these_are(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path, rows=3)
    write(folder, 1)
    assert folder.has("text", 1, "w") and not folder.has("text", 1, "v")
    assert not ShardFolder(tmp_path, rows=4).has("text", 1, "w")
    assert not ShardFolder(tmp_path, rows=3, split="heldout").has("text", 1, "w")
