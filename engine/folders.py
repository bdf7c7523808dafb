"""Model folders: `manifest.json` beside safetensors files, verified before anything is opened.

    folder/
      manifest.json      {"format": 1, "preset": ..., "configs": {...}, "files": {name: sha256},
                          "lineage": {...}, "evaluation": {...}}
      dit.safetensors …  every other file, each listed with its sha256

A folder is whole or refused: one missing, altered or unlisted file and nothing is loaded. A config
overrides numbers of a preset; no file names a class. The manifest's digest names the model.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from engine.errors import CheckpointError
from engine.presets import PRESETS, Preset
from engine.spec import TIERS

FORMAT = 1
MANIFEST = "manifest.json"
DIT = "dit.safetensors"  # the transformer: what training changes, and what a swap exchanges
SIGNATURE = "manifest.sig"  # beside it where the model is signed, see `engine.signatures`
MAX_MANIFEST_BYTES = 4_000_000
CHUNK = 1 << 20
# Called all the time while bytes are fetched or hashed; what it raises ends that and comes out.
Heed = Callable[[], None]


@dataclass(frozen=True)
class Manifest:
    """What a model folder says about itself. `files` maps each name to its sha256 in hex."""

    preset: str
    files: Mapping[str, str] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    lineage: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The file, in one canonical spelling."""
        values = {"format": FORMAT} | {f.name: getattr(self, f.name) for f in fields(self)}
        return (json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """Raises CheckpointError when the content is not a manifest of this format."""
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{MANIFEST} is not JSON: {error}") from error
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise CheckpointError(f"{MANIFEST} is not of format {FORMAT}")
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            wrong = ", ".join(sorted(set(values) ^ known))
            raise CheckpointError(f"{MANIFEST} lacks or should not have: {wrong}")
        kinds = {name: str if name == "preset" else dict for name in known}
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise CheckpointError(f"{MANIFEST}: {name} is not of format {FORMAT}")
        return cls(**values)

    def digest(self) -> str:
        """sha256 of the canonical manifest, in hex: the name of this model."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def resolve(self) -> Preset:
        """The preset with this model's own numbers.

        Raises:
            CheckpointError: the preset, a part or a field is unknown, or a value of another kind.
        """
        if self.preset not in PRESETS:
            raise CheckpointError(f"{MANIFEST}: unknown preset {self.preset!r}")
        preset = PRESETS[self.preset]
        for part, numbers in self.configs.items():
            current: Any = getattr(preset, part, None)
            if not is_dataclass(current) or not isinstance(numbers, Mapping):
                raise CheckpointError(f"{MANIFEST}: configs.{part} is no part of a preset")
            changed = {name: _like(current, part, name, value) for name, value in numbers.items()}
            # Every part is a dataclass of its own kind; mypy cannot follow a part by name.
            own: dict[str, Any] = {part: replace(cast(Any, current), **changed)}
            preset = replace(preset, **own)
        tiers = preset.limits.tiers
        if "exact" not in tiers or not set(tiers) <= set(TIERS):
            raise CheckpointError(f"{MANIFEST}: configs.limits.tiers must be exact, or it and fast")
        _check_context(preset)
        return preset


def read_manifest(folder: Path) -> Manifest:
    """What a model folder says of itself; no other file is looked at. Raises CheckpointError."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {MANIFEST}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path} is too large to be a manifest")
    return Manifest.from_bytes(path.read_bytes())


def verify(folder: Path, heed: Heed = lambda: None) -> Manifest:
    """Checks every file of a model folder against its manifest.

    Raises CheckpointError, naming the first file that is missing, altered, unlisted or not plain.
    """
    with held(folder, heed=heed) as (manifest, _):
        return manifest


class Held:
    """A verified folder for as long as it is held: its manifest, and in `view` the same names,
    which lead to the very handles that were hashed. Whatever is put in the place of a file
    meanwhile, what was verified is what is read."""

    def __init__(self, manifest: Manifest, folder: Path, view: Path, heed: Heed) -> None:
        self.manifest, self.view = manifest, view
        self._folder, self._heed = folder, heed
        self._handles: dict[str, tuple[int, tuple[int, int]]] = {}

    def add(self, name: str, handle: int) -> None:
        """Hash a file and show it. Raises CheckpointError where it is not the one listed."""
        self._handles[name] = handle, _written(handle)
        if _hashed(handle, self._heed) != self.manifest.files[name]:
            raise CheckpointError(f"{self._folder}: {name} is not the file that the manifest lists")
        (self.view / name).symlink_to(f"/dev/fd/{handle}")

    def require_unchanged(self) -> None:
        """Raises CheckpointError where a file was written to after it was verified (its size or a
        time of it tells): then what was read of it must not be used."""
        for name, (handle, before) in self._handles.items():
            if _written(handle) != before:
                raise CheckpointError(f"{self._folder}: {name} was written to while it was read")


@contextmanager
def hold(
    folder: Path, only: Collection[str] | None = None, heed: Heed = lambda: None
) -> Iterator[Held]:
    """Verifies a folder and holds it.

    Args:
        only: the files to verify and to show, of those listed; None: all, and nothing else may lie
            there.

    Raises:
        CheckpointError: as `verify`.
    """
    manifest, folder = read_manifest(folder), Path(folder)
    with ExitStack() as stack:
        view = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="troupe-held-")))
        found = Held(manifest, folder, view, heed)
        for name in sorted(manifest.files if only is None else only):
            require(manifest, [name])
            handle = _open(folder, name)
            stack.callback(os.close, handle)
            found.add(name, handle)
        there = {entry.name for entry in folder.iterdir()} if only is None else set()
        unlisted = there - set(manifest.files) - {MANIFEST, SIGNATURE}
        if unlisted:
            raise CheckpointError(f"{folder}: not in the manifest: {', '.join(sorted(unlisted))}")
        yield found


@contextmanager
def held(
    folder: Path, only: Collection[str] | None = None, heed: Heed = lambda: None
) -> Iterator[tuple[Manifest, Path]]:
    """The manifest and the view of a folder that is held while it is read, see `hold`.

    Raises:
        CheckpointError: as `hold`; and at the end as `Held.require_unchanged`.
    """
    with hold(folder, only, heed) as found:
        yield found.manifest, found.view
        found.require_unchanged()


def require(manifest: Manifest, names: Iterable[str]) -> None:
    """Raises CheckpointError when the manifest does not list a file that is to be opened."""
    for name in names:
        if name not in manifest.files:
            raise CheckpointError(f"{MANIFEST} lists no {name}")


def save_folder(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, bytes | Path],
    overwrite: bool = False,
    moved: Path | None = None,
) -> Manifest:
    """Writes a model folder whole or not at all; returns the manifest with the files' digests.

    Args:
        moved: a folder on the same disk whose files are moved, not copied.

    Raises:
        CheckpointError: the folder exists and `overwrite` is off, or a file name is not plain.
    """
    folder = Path(folder)
    if not overwrite:
        check_new(folder)
    with drafting(folder) as draft:
        for name, content in files.items():
            check_name(name)
            if isinstance(content, Path) and content.parent == moved:
                os.replace(content, draft / name)
                _sync(draft / name)
            else:
                _write(draft / name, content)
        digests = {name: sha256(draft / name) for name in files}
        manifest = replace(manifest, files=digests)
        _write(draft / MANIFEST, manifest.to_bytes())
        draft.chmod(0o755)
        _swap(draft, folder)
    return manifest


@contextmanager
def drafting(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write in, gone afterwards. What killed processes left of their
    own is removed first: it is locked while its process lives."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{folder.name}.draft-"
    for old in folder.parent.iterdir():
        lock = _lock(old) if old.name.startswith(prefix) else None
        if lock is not None:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    lock = _lock(draft)
    try:
        yield draft
    finally:
        if lock is not None:
            os.close(lock)
        shutil.rmtree(draft, ignore_errors=True)


def _lock(folder: Path) -> int | None:
    """A handle, with which the folder is locked; None where somebody else has it, or none can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def check_new(folder: Path) -> None:
    """Raises CheckpointError when there is something where a model folder is to be written."""
    if folder.exists():
        raise CheckpointError(f"{folder} exists; a published model is never changed in place")


def _check_context(preset: Preset) -> None:
    """VACE's blocks stand beside Wan's in rising order from the first on, and only under vace."""
    config, layers = preset.dit, preset.dit.vace_layers
    if (preset.family == "vace") != bool(layers):
        raise CheckpointError(f"{MANIFEST}: configs.dit.vace_layers go with the family vace")
    if not layers:
        return
    rising = list(layers) == sorted(set(layers))
    if not rising or layers[0] != 0 or layers[-1] >= config.num_layers:
        raise CheckpointError(f"{MANIFEST}: configs.dit.vace_layers must rise from 0: {layers}")
    wanted = 2 * preset.vae.z_dim + preset.vae.spatial_factor**2
    if config.vace_in_dim != wanted:
        raise CheckpointError(f"{MANIFEST}: configs.dit.vace_in_dim must be {wanted}")


def _like(config: Any, part: str, name: str, value: Any) -> Any:
    """`value` if it is of the kind that the config's field holds now; lists become tuples."""
    now = getattr(config, name, None)
    if name not in {f.name for f in fields(config)}:
        raise CheckpointError(f"{MANIFEST}: configs.{part}.{name} is unknown")
    if isinstance(now, tuple) and isinstance(value, list):
        kinds = {type(item) for item in now}
        if all(type(item) in kinds for item in value):
            return tuple(value)
    elif type(value) is type(now) or (isinstance(now, float) and type(value) is int):
        return value
    raise CheckpointError(f"{MANIFEST}: configs.{part}.{name} cannot be {value!r:.60}")


def check_name(name: str) -> None:
    """Raises CheckpointError unless it is the name of a file that a model folder may list."""
    if not name or name in {MANIFEST, SIGNATURE} or Path(name).name != name or name.startswith("."):
        raise CheckpointError(f"{name!r} is not a plain file name")


def _open(folder: Path, name: str) -> int:
    """A handle on a plain file of the folder. Raises CheckpointError."""
    check_name(name)
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise CheckpointError(f"{folder}: {name} is missing") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{folder}: {name} is missing")
    return handle


def _hashed(handle: int, heed: Heed) -> str:
    hashed, buffer = hashlib.sha256(), memoryview(bytearray(CHUNK))
    with open(handle, "rb", buffering=0, closefd=False) as file:
        while size := file.readinto(buffer):
            heed()
            hashed.update(buffer[:size])
    return hashed.hexdigest()


def _written(handle: int) -> tuple[int, int]:
    """What a write changes. Not the time of change, which a second name (a link) changes too."""
    found = os.fstat(handle)
    return found.st_size, found.st_mtime_ns


def sha256(path: Path) -> str:
    """What a manifest says of a file: its digest in hex. OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: bytes | Path) -> None:
    with path.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _swap(draft: Path, folder: Path) -> None:
    """Puts the draft in place of the folder; a reader sees the old one or the new one."""
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        os.replace(folder, old)
        os.replace(draft, folder)
        shutil.rmtree(old)
    else:
        os.replace(draft, folder)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
