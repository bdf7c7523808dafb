"""A store that refuses is waited for; what ends the waiting, and what does not begin it."""

import shutil
import time
from pathlib import Path

import pytest

from engine.errors import Cancelled
from service.blobs import FolderBlobs, get
from service.errors import BlobError, BlobMissing
from workers import shelf
from workers.shelf import Shelf


class Disk:
    """A folder store on which something can be put in the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = FolderBlobs(folder)
        self.told: list[str] = []
        self.heard = 0
        self.shelf = Shelf(self.blobs, lambda: self.told.append(self.shelf.refusal))

    def block(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.write_text("in the way")

    def clear(self) -> None:
        self.folder.unlink()

    def hear(self) -> None:
        self.heard += 1
        if self.heard == 3:
            self.clear()


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(shelf, "PAUSES_S", (0.01, 0.04))
    return Disk(tmp_path / "blobs")


def test_what_is_refused_is_stored_once_the_store_takes_it(disk: Disk) -> None:
    disk.block()
    blob = disk.shelf.put("p", b"film", ".mp4", disk.hear)
    assert get(disk.blobs, blob.key) == b"film"
    assert disk.heard >= 3 and disk.shelf.refusal == ""
    assert len(disk.told) == 2 and disk.told[1] == ""
    assert disk.told[0].startswith("the store refuses: The folder for pictures and videos")


def test_a_store_that_is_well_is_not_waited_for(disk: Disk) -> None:
    disk.shelf.put("p", b"film", ".mp4", disk.hear)
    assert disk.heard == 0 and disk.told == []


def test_what_is_not_there_is_not_waited_for(disk: Disk) -> None:
    with pytest.raises(BlobMissing):
        disk.shelf.patiently(lambda: get(disk.blobs, "p/none.mp4"), disk.hear)
    assert disk.heard == 0 and disk.shelf.refusal == ""


def test_who_hears_may_end_the_waiting(disk: Disk) -> None:
    disk.block()

    def stop() -> None:
        raise Cancelled("cancel")

    with pytest.raises(Cancelled):
        disk.shelf.put("p", b"film", ".mp4", stop)
    assert disk.shelf.refusal  # nobody has seen it take anything yet


def test_patience_has_an_end(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "PATIENCE_S", 0.05)
    disk.block()
    with pytest.raises(BlobError, match="cannot be used"):
        disk.shelf.put("p", b"film", ".mp4", lambda: None)
    assert disk.shelf.refusal


def test_a_long_pause_is_heard_through(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease is much shorter than the longest pause."""
    monkeypatch.setattr(shelf, "PAUSES_S", (0.3, 0.3))
    monkeypatch.setattr(shelf, "HEAR_EVERY_S", 0.05)
    disk.block()
    begin = time.monotonic()
    disk.shelf.put("p", b"film", ".mp4", disk.hear)
    assert time.monotonic() - begin >= 0.3 and disk.heard >= 4


def test_as_much_is_tried_as_was_refused(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk with room for a few bytes is still full."""
    monkeypatch.setattr(shelf, "PATIENCE_S", 0.0)
    disk.block()
    with pytest.raises(BlobError):
        disk.shelf.put("p", bytes(5000), ".mp4", lambda: None)
    disk.shelf.look()
    assert disk.shelf.refusal
    disk.clear()
    seen: list[int] = []
    put = disk.blobs.put

    def counted(prefix: str, data: bytes, suffix: str) -> object:
        seen.append(len(data))
        return put(prefix, data, suffix)

    monkeypatch.setattr(disk.blobs, "put", counted)
    disk.shelf.look()
    assert seen == [5000] and disk.shelf.refusal == ""
    assert [path for path in disk.folder.rglob("*") if path.is_file()] == []
