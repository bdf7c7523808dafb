"""Shards hold what the engine's own encoders say, and are written once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.encodings import encode
from engine.presets import Preset
from engine.spec import Reference
from training.data.precompute import NULL, load_sources, precompute
from training.data.shards import COLUMNS, ShardFolder, Table
from training.world.clip import sample_clip


def test_rows_are_what_the_engine_encodes(
    tmp_path: Path, encoder_folder: Path, small_preset: Preset
) -> None:
    folder = ShardFolder(tmp_path, rows=4)
    sources = load_sources(encoder_folder, small_preset)
    assert precompute(folder, sources, 1, batch_size=3) == len(COLUMNS)
    table = Table(folder)
    table.extend(1)
    for number in range(4):
        row, clip = table.row(number), sample_clip(number)
        names = clip.caption.names
        references = [
            Reference.from_image(name, Image.fromarray(np.asarray(picture)))
            for name, picture in zip(names, clip.references, strict=True)
        ]
        want = encode(clip.caption.text, clip.caption.spans, references, sources.encoders, (64, 64))
        num, length = int(row["num_subjects"]), int(row["num_vlm"])
        assert num == len(names) and length == len(want.vlm_VM)
        close = {"rtol": 0.05, "atol": 0.05}  # shards are bf16
        torch.testing.assert_close(row["text"].float(), want.text_TM, **close)
        torch.testing.assert_close(row["tags"][:num].float(), want.tags_SM, **close)
        torch.testing.assert_close(row["refs"][:num].float(), want.refs_SCHW, **close)
        torch.testing.assert_close(row["vlm"][:length].float(), want.vlm_VM, **close)
        assert not row["refs"][num:].any() and not row["vlm"][length:].any()
        np.testing.assert_allclose(row["boxes"][:num].numpy(), clip.boxes)


def test_what_is_there_is_skipped_and_other_weights_renew(
    tmp_path: Path, encoder_folder: Path, small_preset: Preset
) -> None:
    folder = ShardFolder(tmp_path, rows=2)
    sources = load_sources(encoder_folder, small_preset, ("refs", "text"))
    assert precompute(folder, sources, 3, ("refs", "text"), rank=1, num_processes=2) == 2
    assert [folder.has("text", shard) for shard in range(3)] == [False, True, False]
    assert precompute(folder, sources, 3, ("refs", "text")) == 4
    assert precompute(folder, sources, 3, ("refs", "text")) == 0
    assert (tmp_path / NULL).exists() and folder.num_ready(("refs", "text")) == 3
    sources.digests["text"] = "retrained"
    assert precompute(folder, sources, 3, ("refs", "text")) == 3
