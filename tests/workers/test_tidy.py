"""What is served stays on the disk, whoever serves it; what nobody has used for an hour goes."""

import os
import time
from pathlib import Path

from workers.tidy import FRESH_S, SPARE, UNUSED_S, tidy


def model(cache: Path, name: str, age_s: float) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_what_nobody_used_goes_and_the_last_one_stays(tmp_path: Path) -> None:
    cache = tmp_path / "models"
    old, own, others = (
        model(cache, name, age)
        for name, age in (("old", 2 * UNUSED_S), ("own", 3 * UNUSED_S), ("others", 2.0))
    )
    model(cache, ".draft", 2 * UNUSED_S)  # somebody may be writing it
    assert tidy(cache, [own]) == ["old"]
    assert not old.exists() and own.exists() and others.exists() and (cache / ".draft").exists()
    for folder in (own, others):
        os.utime(folder, (0, 0))
    assert len(tidy(cache, [])) == 1  # nobody says anything: one is left to begin with


def test_nothing_there_is_fine(tmp_path: Path) -> None:
    assert tidy(tmp_path / "none", [tmp_path / "gone"]) == []
    model(tmp_path / "models", "one", 2 * UNUSED_S)
    assert tidy(tmp_path / "models", []) == []


def test_where_many_are_published_a_few_spare_ones_stay(tmp_path: Path) -> None:
    cache = tmp_path / "models"
    served = model(cache, "served", 2 * FRESH_S)
    spare = [model(cache, f"spare{n}", FRESH_S + 60.0 * n + 60.0) for n in range(SPARE + 2)]
    fresh = [model(cache, f"fresh{n}", FRESH_S / 2) for n in range(SPARE + 2)]
    assert sorted(tidy(cache, [served])) == ["spare3", "spare4"]
    assert all(path.exists() for path in (served, *spare[:SPARE], *fresh))
