"""Tiny models load, and each makes another video."""

from pathlib import Path

from bench import tiny
from engine import golden
from engine.folders import DIT, verify
from engine.pipeline import Engine


def test_each_variant_makes_its_own_video(tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base")
    found = {}
    for seed in (1, 2):
        folder = tiny.variant(base, tmp_path / str(seed), seed)
        changed = {n for n, d in verify(folder).files.items() if d != verify(base).files[n]}
        assert changed == {DIT}
        found[seed] = golden.picture(Engine.load(folder))
    assert found[1] != found[2]
    again = tiny.variant(base, tmp_path / "again", 1)
    assert verify(again).files == verify(tmp_path / "1").files


def test_a_wider_one(tmp_path: Path) -> None:
    base = tiny.base(tmp_path / "base", {"dim": 64, "num_heads": 1})
    assert verify(base).resolve().dit.dim == 64
    tiny.variant(base, tmp_path / "spoilt", 1, lambda tensors: tensors.clear())
    assert (tmp_path / "spoilt" / DIT).stat().st_size < 100
