"""Where models lie: a local folder or an S3 bucket, behind one small door.

An object is written whole or not at all. Files of a model are written under names that no other
content ever has; only channels move, and those by compare-and-swap: on S3 with If-None-Match and
If-Match (AWS, "Conditional writes"), in a folder under a lock. Some S3 servers take such a
condition and do not heed it (rclone's 1.75 is one), so `probe` tries it out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from engine.errors import RegistryError

CHUNK = 1 << 20
PROBES = "probes"
_REFUSED = {"412", "409", "PreconditionFailed", "ConditionalRequestConflict"}
_MISSING = {"404", "NoSuchKey", "NotFound"}


@dataclass(frozen=True)
class Found:
    """An object in a listing: its size in bytes and when it was written, seconds of the epoch."""

    size: int
    written_s: float


class Store(Protocol):
    """What both stores do. Names have slashes; every method raises RegistryError."""

    url: str

    def read(self, name: str, limit: int) -> tuple[bytes, str] | None:
        """A small object's bytes and its mark, for `swap`; None where there is none."""

    def stream(self, name: str) -> Iterator[bytes]:
        """A large object in chunks."""

    def write(self, name: str, path: Path) -> None:
        """Store the content of a file, in place of what had the name."""

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        """Store small content if the object still has this mark, or with None if there is none.
        False: it has not. After an error it may have been stored or not."""

    def names(self, prefix: str) -> dict[str, Found]:
        """Everything below a prefix, which ends with a slash."""

    def delete(self, name: str) -> None:
        """Remove an object; none there is fine."""


def open_store(url: str) -> Store:
    """A folder, file:///folder or s3://bucket/prefix. Raises RegistryError."""
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme in {"", "file"} and not parts.netloc and parts.path:
        return FolderStore(Path(parts.path))
    raise RegistryError(f"{url} is neither a folder, file:///folder nor s3://bucket/prefix")


def probe(store: Store) -> None:
    """Raises RegistryError where the store lets a write pass whose condition does not hold."""
    name = f"{PROBES}/{uuid.uuid4().hex}"
    try:
        made = store.swap(name, b"1", None)
        made_twice = store.swap(name, b"2", None)
        first = store.read(name, 10)
        _judge(store, "If-None-Match", made, made_twice, first, b"1")
        assert first is not None
        moved = store.swap(name, b"3", first[1])
        moved_twice = store.swap(name, b"4", first[1])
        _judge(store, "If-Match", moved, moved_twice, store.read(name, 10), b"3")
    finally:
        with suppress(RegistryError):
            store.delete(name)


def _judge(
    store: Store,
    condition: str,
    once: bool,
    twice: bool,
    found: tuple[bytes, str] | None,
    wanted: bytes,
) -> None:
    if not once or twice or found is None or found[0] != wanted:
        raise RegistryError(
            f"{store.url} does not heed {condition}: two publishers would overwrite each other"
            " unseen, so it can hold models but no channels; use a store with conditional writes,"
            " such as S3 of AWS, or a folder"
        )


class FolderStore:
    """Objects as files below one folder, which appear by rename, after their bytes are on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder).resolve()
        self.url = str(self._folder)

    def _path(self, name: str) -> Path:
        path = self._folder / name
        if ".." in Path(name).parts or path == self._folder:
            raise RegistryError(f"{name!r} is not a name of this store")
        return path

    def read(self, name: str, limit: int) -> tuple[bytes, str] | None:
        """The mark is the content's sha256."""
        with self._errors():
            try:
                with self._path(name).open("rb") as file:
                    content = file.read(limit + 1)
            except (FileNotFoundError, NotADirectoryError):
                return None
        _check_size(name, content, limit)
        return content, hashlib.sha256(content).hexdigest()

    def stream(self, name: str) -> Iterator[bytes]:
        """Chunks of the file that had the name at the start."""
        with self._errors(), self._path(name).open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def write(self, name: str, path: Path) -> None:
        """A copy."""
        with self._errors(), path.open("rb") as source:
            self._put(name, iter(lambda: source.read(CHUNK), b""))

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        """Under a lock of the whole store, which all its writers take."""
        with self._errors(), self._locked():
            now = self.read(name, CHUNK + len(content))
            if (None if now is None else now[1]) != mark:
                return False
            self._put(name, iter((content,)))
        return True

    def names(self, prefix: str) -> dict[str, Found]:
        """Hidden files, such as drafts, are none."""
        found = {}
        with self._errors():
            for path in sorted(self._path(prefix).rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    told = path.stat()
                    name = path.relative_to(self._folder).as_posix()
                    found[name] = Found(told.st_size, told.st_mtime)
        return found

    def delete(self, name: str) -> None:
        """With its folder, where that is empty then."""
        path = self._path(name)
        with self._errors(), self._locked():
            path.unlink(missing_ok=True)
            with suppress(OSError):
                path.parent.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _put(self, name: str, chunks: Iterator[bytes]) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(draft, 0o644)
            os.replace(draft, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryError(f"{self.url} cannot be used: {error}") from error


def s3_client(attempts: int) -> Any:
    """A boto3 client for AWS or, with AWS_ENDPOINT_URL, a clone. Raises ImportError without boto3.

    attempts: of a request that fails, with growing pauses.
    """
    import boto3
    from botocore.config import Config

    # Checksums only where asked for: several S3 clones choke on the newer default.
    config = Config(
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=2,
        read_timeout=20,
        retries={"max_attempts": attempts, "mode": "standard"},
    )
    # Of its own session: the default one keeps the first credentials that it found.
    return boto3.Session().client("s3", config=config)


class S3Store:
    """Objects in one bucket below one prefix, on AWS or, with AWS_ENDPOINT_URL, on a clone."""

    def __init__(self, bucket: str, root: str) -> None:
        self._bucket = bucket
        self._root = f"{root}/" if root else ""
        self.url = f"s3://{bucket}/{root}".rstrip("/")
        try:
            self._s3 = s3_client(attempts=4)
        except ImportError as error:
            raise RegistryError(f"{self.url} needs boto3: {error}") from error

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._root + name}

    def read(self, name: str, limit: int) -> tuple[bytes, str] | None:
        """The mark is the ETag."""
        with self._errors():
            try:
                answer = self._s3.get_object(**self._at(name))
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
            content = answer["Body"].read(limit + 1)
        _check_size(name, content, limit)
        # botocore compares them only where everything is read at once: half would pass for whole.
        if len(content) != answer["ContentLength"]:
            raise RegistryError(f"{self.url} broke off in the middle of {name}")
        return content, str(answer["ETag"])

    def stream(self, name: str) -> Iterator[bytes]:
        """Chunks; a connection that breaks is an error, not an end."""
        with self._errors():
            answer = self._s3.get_object(**self._at(name))
            yield from answer["Body"].iter_chunks(CHUNK)

    def write(self, name: str, path: Path) -> None:
        """In parts, where it is large."""
        with self._errors(), path.open("rb") as file:
            self._s3.upload_fileobj(file, self._bucket, self._root + name)

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        """S3 answers 412, or 409 while another conditional write is under way."""
        held = {"IfNoneMatch": "*"} if mark is None else {"IfMatch": mark}
        with self._errors():
            try:
                self._s3.put_object(**self._at(name), Body=content, **held)
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _REFUSED or (mark and _code(error) in _MISSING):
                    return False
                raise
        return True

    def names(self, prefix: str) -> dict[str, Found]:
        """A thousand at a time."""
        with self._errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._root + prefix
            )
            return {
                item["Key"].removeprefix(self._root): Found(
                    item["Size"], item["LastModified"].timestamp()
                )
                for page in pages
                for item in page.get("Contents", [])
            }

    def delete(self, name: str) -> None:
        """S3 does not say whether it was there."""
        with self._errors():
            self._s3.delete_object(**self._at(name))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error, OSError) as error:
            raise RegistryError(f"{self.url} cannot be used: {error}") from error


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _check_size(name: str, content: bytes, limit: int) -> None:
    if len(content) > limit:
        raise RegistryError(f"{name} has more than {limit} bytes")
