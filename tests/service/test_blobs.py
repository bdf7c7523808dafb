"""Folder and S3 (moto's real HTTP server) behave alike; a full disk is told, not half-written."""

import hashlib
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from service.blobs import Blobs, FolderBlobs, S3Blobs, get, open_blobs
from service.errors import BlobError, BlobMissing
from service.settings import Settings
from tests.service.rig import ROOT, free_port

BIG = bytes(range(256)) * 4096  # a few chunks


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        server = ThreadedMotoServer(port=free_port(), verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def bucket(endpoint: str) -> str:
    name = f"b{uuid.uuid4().hex}"
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "folder":
        return FolderBlobs(tmp_path / "blobs")
    endpoint = request.getfixturevalue("endpoint")
    bucket = request.getfixturevalue("bucket")
    request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", endpoint)
    return open_blobs(Settings(blobs_url=f"s3://{bucket}/some/root"))


def test_what_is_put_comes_back_under_its_digest(store: Blobs) -> None:
    blob = store.put("videos/v1/out", BIG, ".mp4")
    digest = hashlib.sha256(BIG).hexdigest()
    assert blob.key == f"videos/v1/out/{digest}.mp4"
    assert (blob.size, blob.sha256) == (len(BIG), digest)
    assert store.size(blob.key) == len(BIG)
    assert get(store, blob.key) == BIG
    assert store.put("videos/v1/out", BIG, ".mp4") == blob
    assert blob.key in store.url(blob.key)


@pytest.mark.parametrize(("start", "end"), [(0, 1), (5, 300_000), (1_000_000, None), (7, 8)])
def test_a_part_is_that_part(store: Blobs, start: int, end: int | None) -> None:
    key = store.put("p", BIG, ".bin").key
    assert b"".join(store.read(key, start, end)) == BIG[start:end]


def test_what_is_not_there_is_missing(store: Blobs) -> None:
    for call in (store.size, store.read):
        with pytest.raises(BlobMissing):
            call("videos/none/x.mp4")


def test_delete_takes_a_prefix_and_nothing_beside_it(store: Blobs) -> None:
    gone = [store.put(f"videos/v1/{part}", part.encode(), ".txt").key for part in ("in", "out")]
    kept = store.put("videos/v10/in", b"x", ".txt").key
    store.delete("videos/v1")
    store.delete("videos/v1")
    for key in gone:
        with pytest.raises(BlobMissing):
            store.size(key)
    assert get(store, kept) == b"x"


def test_several_may_delete_while_one_writes(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path)
    for n in range(200):
        store.put(f"videos/v1/{n % 7}", str(n).encode(), ".txt")
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(store.delete, "videos/v1") for _ in range(4)]
        with suppress(BlobMissing):  # its folder went away under it, which is told
            store.put("videos/v1/late", b"late", ".txt")
    assert [one.result() for one in done] == [None] * 4
    store.delete("videos/v1")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_store_that_can_be_written_passes_its_check(store: Blobs) -> None:
    store.check()


def test_a_missing_bucket_and_a_dead_endpoint_are_told(
    endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(BlobError):
        S3Blobs("nosuchbucket", "").check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(BlobError, match="cannot be reached"):
        S3Blobs(bucket, "").check()


def test_a_key_cannot_leave_the_folder(tmp_path: Path) -> None:
    store = FolderBlobs(tmp_path / "blobs")
    (tmp_path / "secret").write_text("s")
    for key in ("../secret", "/etc/passwd", "", "a/../../secret"):
        with pytest.raises(BlobMissing):
            store.size(key)
        with pytest.raises(BlobMissing):
            store.delete(key)


def test_an_unusable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BlobError, match="cannot be used"):
        FolderBlobs(tmp_path / "file").check()


FILL = """
import resource, signal, sys
from pathlib import Path
from service.blobs import FolderBlobs
from service.errors import BlobFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    FolderBlobs(Path(sys.argv[1])).put("p", bytes(5000), ".bin")
except BlobFull as error:
    sys.exit(str(error))
"""


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert "disk that holds pictures and videos is full" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("url", ["file:///tmp/x", "/tmp/x", "relative/x"])
def test_folders_in_three_spellings(url: str) -> None:
    assert isinstance(open_blobs(Settings(blobs_url=url)), FolderBlobs)


@pytest.mark.parametrize("url", ["http://x/y", "gs://bucket", "file://host/x"])
def test_other_stores_are_refused(url: str) -> None:
    with pytest.raises(BlobError, match="neither a folder"):
        open_blobs(Settings(blobs_url=url))
