"""Compiled programs on disk, one folder each, whole or not there.

    folder/
      <key>/                key: sha256 of what the program was built for
        about.json          {"format": 1, "parts": {...}, "sha256": of the program}
        program.pt2

A program is machine code and runs with the rights of whoever loads it, so the folder must be
writable for nobody else; it is created that way. What is damaged, or not what its name says, is
never opened: it is thrown away with a warning and built again, as one expects of a cache.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.errors import BackendError

FORMAT = 1
ABOUT = "about.json"
PROGRAM = "program.pt2"
FOLDER_VARIABLE = "TROUPE_COMPILE_DIR"

Parts = Mapping[str, str]
Build = Callable[[Path], None]

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """$TROUPE_COMPILE_DIR, else `troupe/compiled` in the user's cache folder."""
    own = os.environ.get(FOLDER_VARIABLE)
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "troupe" / "compiled"


def key(parts: Parts) -> str:
    """sha256, in hex, of what a program was built for."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


class Packages:
    """The programs in `folder`, which is made when the first is stored."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    def get_or(self, parts: Parts, build: Build) -> Path:
        """The path of the program for `parts`, built if it is not there or damaged.

        Args:
            parts: what the program depends on, all of it; equal parts, equal program.
            build: writes the program to the path it is given.

        Raises:
            BackendError: the folder cannot be written, or a damaged program cannot be removed.
                What `build` raises comes out as it is, and leaves nothing behind.
        """
        found = self.folder / key(parts)
        if found.exists():
            why = self._damage(found, parts)
            if not why:
                return found / PROGRAM
            log.warning("%s is thrown away and built again: %s", found, why)
            _remove(found, why)
        return self._store(found, parts, build)

    def _damage(self, found: Path, parts: Parts) -> str:
        """What is wrong with a stored program; empty when nothing is."""
        try:
            about = json.loads((found / ABOUT).read_bytes())
            digest = _sha256(found / PROGRAM)
        except (OSError, ValueError) as error:
            return f"it cannot be read ({error})"
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            return f"{ABOUT} is not of format {FORMAT}"
        if about.get("parts") != dict(parts):
            return "it was built for something else than its name says"
        return "" if about.get("sha256") == digest else "its contents have changed"

    def _store(self, found: Path, parts: Parts, build: Build) -> Path:
        draft = self._draft()
        try:
            build(draft / PROGRAM)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        try:
            digest = _sha256(draft / PROGRAM)
            about = {"format": FORMAT, "parts": dict(parts), "sha256": digest}
            (draft / ABOUT).write_text(json.dumps(about, indent=2, sort_keys=True))
            draft.rename(found)
        except OSError as error:
            # Somebody else was quicker: theirs is as good as ours.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or self._damage(found, parts):
                raise BackendError(f"cannot write {found}: {error}; {_elsewhere()}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return found / PROGRAM

    def _draft(self) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return Path(tempfile.mkdtemp(prefix=".draft.", dir=self.folder))
        except OSError as error:
            raise BackendError(f"cannot write {self.folder}: {error}; {_elsewhere()}") from error


def _remove(found: Path, why: str) -> None:
    try:
        shutil.rmtree(found)
    except OSError as error:
        raise BackendError(
            f"{found} is damaged ({why}) and cannot be removed ({error}): delete it"
        ) from error


def _elsewhere() -> str:
    return f"set {FOLDER_VARIABLE} to a folder that can be written"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
