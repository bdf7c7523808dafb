"""Real S3 servers for tests: moto's, which heeds conditions, and rclone's, which does not."""

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.service.rig import free_port

KEY, SECRET = "test", "testtest"


@contextmanager
def moto() -> Iterator[str]:
    """The endpoint of a server in this process; the environment leads every client to it."""
    server = ThreadedMotoServer(port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with _environment(f"http://{host}:{port}"):
            yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """The same of `rclone serve s3` over a folder: it checks signatures, and no conditions."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--no-checksum"]
    command += ["--addr", f"127.0.0.1:{port}", "--auth-key", f"{KEY},{SECRET}"]
    command += ["--vfs-cache-mode", "writes", "--cache-dir", str(folder / "cache")]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([*command, str(folder / "buckets")], stdout=log, stderr=log)
    try:
        (folder / "buckets").mkdir(exist_ok=True)
        _await(f"http://127.0.0.1:{port}", server)
        with _environment(f"http://127.0.0.1:{port}"):
            yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def new_bucket() -> str:
    """The name of a bucket that was just made."""
    name = f"b{uuid.uuid4().hex[:20]}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@contextmanager
def _environment(endpoint: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        yield


def _await(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        assert server.poll() is None, "rclone has ended"
        try:
            httpx.get(url, timeout=1.0)
            return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"nobody answers at {url}")
