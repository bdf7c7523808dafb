"""Pictures and videos as bytes under server-made names: a local folder, or S3.

A key is `<prefix>/<sha256 of the bytes><suffix>`, so equal bytes under one prefix are one object,
a name never comes from a client, and everything of one job goes with `delete(prefix)`. Both
stores write an object entirely or not at all.
"""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from engine.stores import s3_client
from service.errors import BlobError, BlobFull, BlobMissing
from service.settings import Settings

CHUNK = 1 << 18
DELETE_TRIES = 50
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_RACED = {errno.ENOENT, errno.ENOTEMPTY}


@dataclass(frozen=True)
class Blob:
    """An object's key, size in bytes, and sha256 in hex."""

    key: str
    size: int
    sha256: str


class Blobs(Protocol):
    """What both stores do. Every method raises BlobError or one of its children."""

    def put(self, prefix: str, data: bytes, suffix: str) -> Blob:
        """Store bytes under their own digest."""

    def size(self, key: str) -> int:
        """Length in bytes. Raises BlobMissing."""

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in chunks. Raises BlobMissing before the first chunk."""

    def url(self, key: str) -> str:
        """Where the object lies, for an operator; not a public address."""

    def lend(self, key: str, seconds: int, headers: Mapping[str, str]) -> str | None:
        """An address at which anybody may read the object for so long; None: the store has none to
        give. headers: of the answer, by their names in S3's GetObject."""

    def delete(self, prefix: str) -> None:
        """Remove everything under a prefix; nothing there is fine."""

    def check(self) -> None:
        """Raises BlobError unless the store can be written."""


def get(blobs: Blobs, key: str) -> bytes:
    """A whole object."""
    return b"".join(blobs.read(key))


def open_blobs(settings: Settings) -> Blobs:
    """The store that blobs_url names.

    Raises:
        BlobError: a scheme that is neither a folder's nor S3's.
    """
    url = urlsplit(settings.blobs_url)
    if url.scheme == "s3":
        return S3Blobs(url.netloc, url.path.strip("/"))
    if url.scheme == "file" and url.netloc in {"", "localhost"}:
        return FolderBlobs(Path(unquote(url.path)))
    if url.scheme == "":
        return FolderBlobs(Path(settings.blobs_url))
    raise BlobError(
        f"TROUPE_BLOBS_URL={settings.blobs_url} is neither a folder, file:///folder nor s3://bucket"
    )


def _named(prefix: str, data: bytes, suffix: str) -> Blob:
    digest = hashlib.sha256(data).hexdigest()
    return Blob(f"{prefix}/{digest}{suffix}", len(data), digest)


class FolderBlobs:
    """Objects as files below one folder. A file appears by rename, after its bytes are on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def _path(self, key: str) -> Path:
        path = (self._folder / key).resolve()
        if not path.is_relative_to(self._folder) or path == self._folder:
            raise BlobMissing(f"{key!r} is not a key of this store")
        return path

    def put(self, prefix: str, data: bytes, suffix: str) -> Blob:
        """Raises BlobFull when the disk or the quota is."""
        blob = _named(prefix, data, suffix)
        path = self._path(blob.key)
        partial = path.with_name(f".{uuid.uuid4().hex}.partial")
        with _folder_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return blob

    def size(self, key: str) -> int:
        """Length in bytes."""
        with _folder_errors():
            return self._path(key).stat().st_size

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Chunks of [start, end)."""
        with _folder_errors():
            stop = self.size(key) if end is None else end
            file = self._path(key).open("rb")

        def chunks() -> Iterator[bytes]:
            with file, _folder_errors():
                file.seek(start)
                left = stop - start
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk

        return chunks()

    def url(self, key: str) -> str:
        """A file:// address."""
        return self._path(key).as_uri()

    def lend(self, key: str, seconds: int, headers: Mapping[str, str]) -> str | None:
        """A folder answers nobody."""
        return None

    def delete(self, prefix: str) -> None:
        """Removes the folder, also while another process writes to it or deletes it too."""
        with _folder_errors():
            path = self._path(prefix)
            for _ in range(DELETE_TRIES):
                if not path.is_dir():
                    return
                try:
                    shutil.rmtree(path)
                except OSError as error:
                    if error.errno not in _RACED:
                        raise

    def check(self) -> None:
        """Writes and removes a small object, under a name of its own for each call."""
        name = f"health-{uuid.uuid4().hex}"
        self.put(name, b"ok", ".txt")
        self.delete(name)


@contextmanager
def _folder_errors() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BlobMissing(f"{Path(str(error.filename)).name} is not there") from error
    except OSError as error:
        if error.errno in FULL:
            raise BlobFull("The disk that holds pictures and videos is full.") from error
        raise BlobError(f"The folder for pictures and videos cannot be used: {error}") from error


class S3Blobs:
    """Objects in one bucket below one prefix, on AWS or, with AWS_ENDPOINT_URL, on a clone."""

    def __init__(self, bucket: str, root: str) -> None:
        self._bucket = bucket
        self._root = f"{root}/" if root else ""
        self._s3 = s3_client(attempts=2)

    def put(self, prefix: str, data: bytes, suffix: str) -> Blob:
        """S3 shows an object only when it is whole."""
        blob = _named(prefix, data, suffix)
        with _s3_errors():
            self._s3.put_object(Bucket=self._bucket, Key=self._root + blob.key, Body=data)
        return blob

    def size(self, key: str) -> int:
        """Length in bytes."""
        with _s3_errors():
            head = self._s3.head_object(Bucket=self._bucket, Key=self._root + key)
        return int(head["ContentLength"])

    def read(self, key: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Chunks of [start, end)."""
        wanted = {} if start == 0 and end is None else {"Range": f"bytes={start}-{_last(end)}"}
        with _s3_errors():
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._root + key, **wanted)

        def chunks() -> Iterator[bytes]:
            with _s3_errors():
                yield from answer["Body"].iter_chunks(CHUNK)

        return chunks()

    def url(self, key: str) -> str:
        """An s3:// address."""
        return f"s3://{self._bucket}/{self._root}{key}"

    def lend(self, key: str, seconds: int, headers: Mapping[str, str]) -> str | None:
        """Signed here with the gateway's credentials; S3 is not asked."""
        named = {"Bucket": self._bucket, "Key": self._root + key, **headers}
        with _s3_errors():
            return str(self._s3.generate_presigned_url("get_object", named, ExpiresIn=seconds))

    def delete(self, prefix: str) -> None:
        """Lists, then deletes, a thousand at a time."""
        with _s3_errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._root}{prefix}/"
            )
            for page in pages:
                found = [{"Key": item["Key"]} for item in page.get("Contents", [])]
                if found:
                    self._s3.delete_objects(Bucket=self._bucket, Delete={"Objects": found})

    def check(self) -> None:
        """Asks for the bucket."""
        with _s3_errors():
            self._s3.head_bucket(Bucket=self._bucket)


def _last(end: int | None) -> str:
    return "" if end is None else str(end - 1)


@contextmanager
def _s3_errors() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in {"404", "NoSuchKey", "NotFound"}:
            raise BlobMissing(f"The object is not in the bucket ({code}).") from error
        if code in {"QuotaExceeded", "EntityTooLarge", "XMinioStorageFull"}:
            raise BlobFull(f"The bucket is full ({code}).") from error
        raise BlobError(f"S3 refused: {error}") from error
    except BotoCoreError as error:
        raise BlobError(f"S3 cannot be reached: {error}") from error
