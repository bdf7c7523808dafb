"""Encodings by content: in memory, least recently used out first, and on disk.

The key is `engine.encodings.key`; the scope keeps tenants apart, so that nobody can learn from the
time of an answer what another has sent. A hit is bit-equal to the miss that wrote it. A file on
disk carries its own digest in its name; one that does not match counts as a miss and is replaced.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from engine.encodings import Encodings


class EncodingCache:
    """Encodings by (scope, key).

    Args:
        max_items: how many to keep in memory.
        folder: where to keep them on disk; None keeps none.
        max_bytes: how much to keep on disk; the oldest files go first.
    """

    def __init__(
        self, max_items: int = 64, folder: Path | None = None, max_bytes: int = 2_000_000_000
    ) -> None:
        self.max_items, self.folder, self.max_bytes = max_items, folder, max_bytes
        self._memory: OrderedDict[tuple[str, str], Encodings] = OrderedDict()

    def get_or(self, key: str, compute: Callable[[], Encodings], scope: str = "") -> Encodings:
        """What is kept under the key, or what `compute` returns, kept from now on."""
        place = (scope, key)
        found = self._memory.get(place)
        if found is None:
            found = self._read(place)
        if found is None:
            found = compute()
            self._write(place, found)
        self._memory[place] = found
        self._memory.move_to_end(place)
        while len(self._memory) > self.max_items:
            self._memory.popitem(last=False)
        return found

    def _scope_folder(self, scope: str) -> Path | None:
        # A tenant's name is no path: it is hashed before it meets the file system.
        return self.folder and self.folder / hashlib.sha256(scope.encode()).hexdigest()[:32]

    def _read(self, place: tuple[str, str]) -> Encodings | None:
        folder = self._scope_folder(place[0])
        if folder is None:
            return None
        for path in sorted(folder.glob(f"{place[1]}-*.safetensors")):
            found = _load(path)
            if found is not None:
                return found
            path.unlink(missing_ok=True)
        return None

    def _write(self, place: tuple[str, str], encodings: Encodings) -> None:
        folder = self._scope_folder(place[0])
        if folder is None or self.folder is None:
            return
        content = save({name: x.contiguous() for name, x in encodings.tensors().items()})
        folder.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=folder, suffix=".draft")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(draft, folder / f"{place[1]}-{_digest(content)}.safetensors")
        self._prune(self.folder)

    def _prune(self, root: Path) -> None:
        """Deletes the files that were not used for longest, until the rest fits."""
        files = [(path.stat(), path) for path in root.glob("*/*.safetensors")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


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
