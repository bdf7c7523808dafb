"""Encodings by content: in memory, least recently used out first, and on disk.

The key is `engine.encodings.key`; the scope keeps tenants apart, so that nobody can learn from the
time of an answer what another has sent. A hit is bit-equal to the miss that wrote it. A file on
disk carries its own digest in its name; one that does not match counts as a miss and is replaced.

An entry belongs to those it was made or used for, its owners (jobs); once `forget` has heard that
all of them are gone, it is gone. One without owners stays until there is no room.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from safetensors import SafetensorError
from safetensors.torch import load, save

from engine.encodings import Encodings

Place = tuple[str, str]  # scope, key


class EncodingCache:
    """Encodings by (scope, key). One thread encodes; any other may forget meanwhile.

    Args:
        max_items: how many to keep in memory.
        folder: where to keep them on disk; None keeps none.
        max_bytes: how much to keep on disk; the oldest files go first.
    """

    def __init__(
        self, max_items: int = 256, folder: Path | None = None, max_bytes: int = 2_000_000_000
    ) -> None:
        self.max_items, self.folder, self.max_bytes = max_items, folder, max_bytes
        self._memory: OrderedDict[Place, Encodings] = OrderedDict()
        self._owners: dict[Place, set[str]] = {}
        self._lock = threading.RLock()

    def get_or(
        self, key: str, compute: Callable[[], Encodings], scope: str = "", owner: str = ""
    ) -> Encodings:
        """What is kept under the key, or what `compute` returns, kept from now on.

        owner: for whom; empty: nobody whose end would be told.
        """
        place = (scope, key)
        with self._lock:
            self._own(place, owner)
            found = self._memory.get(place)
        if found is None:
            found = self._read(place)
        if found is None:
            found = compute()
            self._write(place, found)
        with self._lock:
            self._own(place, owner)  # it may have been forgotten meanwhile
            self._memory[place] = found
            self._memory.move_to_end(place)
            while len(self._memory) > self.max_items:
                oldest, _ = self._memory.popitem(last=False)
                self._owners.pop(oldest, None)
        return found

    def owners(self) -> set[str]:
        """All that anything is kept for, here or on disk."""
        with self._lock:
            found = {owner for owners in self._owners.values() for owner in owners}
        if self.folder is not None:
            found |= {unquote(mark.name) for mark in self.folder.glob("*/*.owners/*")}
        return found

    def forget(self, gone: Collection[str]) -> None:
        """Nothing is kept any more for these owners, nor what was kept for nobody else."""
        with self._lock:
            for place in [place for place, owners in self._owners.items() if owners & set(gone)]:
                self._owners[place] -= set(gone)
                if not self._owners[place]:
                    del self._owners[place]
                    self._memory.pop(place, None)
        if self.folder is not None:
            marks = [m for m in self.folder.glob("*/*.owners/*") if unquote(m.name) in gone]
            _remove([mark.parent for mark in marks if _was_last(mark)])

    def drop(self) -> None:
        """Nothing is kept in memory any more; what is on disk stays, under its own keys."""
        with self._lock:
            self._memory.clear()
            self._owners.clear()

    def _own(self, place: Place, owner: str) -> None:
        """The mark stands before the file, so that no file is there without."""
        if not owner:
            return
        self._owners.setdefault(place, set()).add(owner)
        folder = self._scope_folder(place[0])
        if folder is not None:
            _mark(folder / f"{place[1]}.owners", quote(owner, safe=""))

    def _scope_folder(self, scope: str) -> Path | None:
        # A tenant's name is no path: it is hashed before it meets the file system.
        return self.folder and self.folder / hashlib.sha256(scope.encode()).hexdigest()[:32]

    def _read(self, place: Place) -> Encodings | None:
        folder = self._scope_folder(place[0])
        if folder is None:
            return None
        for path in sorted(folder.glob(f"{place[1]}-*.safetensors")):
            found = _load(path)
            if found is not None:
                return found
            path.unlink(missing_ok=True)
        return None

    def _write(self, place: Place, encodings: Encodings) -> None:
        folder = self._scope_folder(place[0])
        if folder is None or self.folder is None:
            return
        content = save({name: x.contiguous() for name, x in encodings.tensors().items()})
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=folder, prefix=f"{place[1]}-", suffix=".draft")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        with suppress(FileNotFoundError):  # forgotten meanwhile, by another process
            os.replace(draft, folder / f"{place[1]}-{_digest(content)}.safetensors")
        self._prune(self.folder)

    def _prune(self, root: Path) -> None:
        """Deletes the files that were not used for longest, until the rest fits."""
        files = [(stat, path) for path in root.glob("*/*.safetensors") if (stat := _stat(path))]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size
            shutil.rmtree(path.with_name(f"{path.stem.split('-')[0]}.owners"), ignore_errors=True)


def _stat(path: Path) -> os.stat_result | None:
    """None where another process has just deleted it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _mark(owners: Path, name: str) -> None:
    """Once more where another process has just removed the folder with its last mark."""
    while True:
        owners.mkdir(parents=True, exist_ok=True)
        try:
            (owners / name).touch()
            return
        except FileNotFoundError:
            continue


def _was_last(mark: Path) -> bool:
    """Remove a mark. Whether it was the last one of its key."""
    mark.unlink(missing_ok=True)
    try:
        mark.parent.rmdir()
    except OSError:
        return False  # others own it too, or somebody was faster
    return True


def _remove(owners: Collection[Path]) -> None:
    """The files and drafts of keys whose folders of owners are gone; each folder is read once."""
    for folder in {path.parent for path in owners}:
        keys = {path.stem for path in owners if path.parent == folder}
        for path in folder.iterdir():
            if path.suffix != ".owners" and path.name.split("-")[0] in keys:
                path.unlink(missing_ok=True)


def _load(path: Path) -> Encodings | None:
    """The file's encodings; None when it is not what its name says, as after a torn write."""
    try:
        content = path.read_bytes()
        if path.stem.split("-")[-1] != _digest(content):
            return None
        os.utime(path)
        return Encodings(**load(content))
    except (OSError, SafetensorError, TypeError):
        return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
