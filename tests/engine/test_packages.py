"""Programs on disk: built once, whole or not there, thrown away when they are not what they say."""

import json
import logging
from pathlib import Path

import pytest

from engine import packages
from engine.errors import BackendError
from engine.packages import ABOUT, PROGRAM, Packages, key

PARTS = {"mode": "aoti", "torch": "2.13.0"}


class Builder:
    """Writes its number of calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> None:
        self.calls += 1
        path.write_text(f"program {self.calls}")


def test_built_once_and_found_again(tmp_path):
    build = Builder()
    first = Packages(tmp_path / "new").get_or(PARTS, build)
    again = Packages(tmp_path / "new").get_or(dict(reversed(PARTS.items())), build)
    assert first == again == tmp_path / "new" / key(PARTS) / PROGRAM
    assert (first.read_text(), build.calls) == ("program 1", 1)
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


def test_every_part_is_in_the_key(tmp_path):
    build, store = Builder(), Packages(tmp_path)
    store.get_or(PARTS, build)
    store.get_or(PARTS | {"torch": "2.14.0"}, build)
    assert build.calls == 2 and len({p.name for p in tmp_path.iterdir()}) == 2


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fails(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        Packages(tmp_path).get_or(PARTS, fails)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_it_is_whole(tmp_path):
    seen: list[bool] = []

    def watched(path: Path) -> None:
        path.write_text("program")
        seen.append((tmp_path / key(PARTS)).exists())

    Packages(tmp_path).get_or(PARTS, watched)
    assert seen == [False]


def _alter_program(found: Path) -> None:
    (found / PROGRAM).write_text("something else")


def _truncate(found: Path) -> None:
    (found / ABOUT).write_text("{")


def _no_program(found: Path) -> None:
    (found / PROGRAM).unlink()


def _other_torch(found: Path) -> None:
    about = json.loads((found / ABOUT).read_text())
    about["parts"]["torch"] = "2.9.0"
    (found / ABOUT).write_text(json.dumps(about))


def _other_format(found: Path) -> None:
    (found / ABOUT).write_text(json.dumps({"format": 0}))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_alter_program, "contents have changed"),
        (_truncate, "cannot be read"),
        (_no_program, "cannot be read"),
        (_other_torch, "something else than its name"),
        (_other_format, "not of format"),
    ],
)
def test_what_is_damaged_is_built_again_and_told(tmp_path, caplog, damage, why):
    build, store = Builder(), Packages(tmp_path)
    damage(store.get_or(PARTS, build).parent)
    with caplog.at_level(logging.WARNING, logger=packages.__name__):
        path = store.get_or(PARTS, build)
    assert path.read_text() == "program 2"
    assert why in caplog.text and str(path.parent) in caplog.text


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    build, store = Builder(), Packages(tmp_path)
    found = store.get_or(PARTS, build).parent
    _alter_program(found)

    def refuse(path: Path, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(packages.shutil, "rmtree", refuse)
    with pytest.raises(BackendError, match=f"{found} is damaged .* delete it"):
        store.get_or(PARTS, build)


def test_the_quicker_of_two_wins(tmp_path):
    store, other = Packages(tmp_path), Builder()

    def slow(path: Path) -> None:
        path.write_text("slow")
        Packages(tmp_path).get_or(PARTS, other)

    assert store.get_or(PARTS, slow).read_text() == "program 1"
    assert [p.name for p in tmp_path.iterdir()] == [key(PARTS)]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="TROUPE_COMPILE_DIR"):
        Packages(tmp_path / "file").get_or(PARTS, Builder())


def test_default_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TROUPE_COMPILE_DIR", raising=False)
    assert packages.default_folder() == tmp_path / "troupe" / "compiled"
    monkeypatch.setenv("TROUPE_COMPILE_DIR", str(tmp_path / "own"))
    assert packages.default_folder() == tmp_path / "own"
