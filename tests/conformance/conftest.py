"""Which server is asked: `python -m pytest tests/conformance --base-url URL --api-key KEY`.

Without an address our own stack is started: real processes, the scripted engine, keys required.
What only our own stack can be brought to do is skipped for others.
"""

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.service.rig import redis_url

openai = pytest.importorskip("openai")

__all__ = ["redis_url"]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--base-url", help="a server of /v1/videos, such as http://host:8000/v1")
    group.addoption("--api-key", default="none", help="a key that may read and write")
    group.addoption("--fields", default="{}", help="JSON: fields for every video, to make it quick")


@dataclass(frozen=True)
class Server:
    """Who is asked, and how. own: our own stack's gateway; None: another's server."""

    url: str
    key: str
    fields: dict[str, Any]
    own: Any = None

    def client(self, **options: Any) -> "openai.OpenAI":
        """The official SDK, as its users make it."""
        return openai.OpenAI(base_url=self.url, **{"api_key": self.key, **options})


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """The server that was named, or our own."""
    config = request.config
    url = config.getoption("--base-url", default=None)
    if url:
        fields = json.loads(config.getoption("--fields"))
        yield Server(url, config.getoption("--api-key"), fields)
        return
    yield from _ours(request.getfixturevalue("redis_url"))


def _ours(redis_url: str) -> Iterator[Server]:
    from service.auth import Keys
    from service.ledger import connect
    from tests.service.rig import Service
    from workers.settings import Settings

    folder = Path(tempfile.mkdtemp(prefix="tr"))
    (folder / "model").mkdir()
    settings = Settings(
        redis_url=redis_url,
        key_prefix=f"t{uuid.uuid4().hex[:12]}",
        blobs_url=str(folder / "blobs"),
        redis_timeout_s=5,
        decode_timeout_s=60,
        lease_s=5,
        model_dir=folder / "model",
        auth="keys",
    )
    client = connect(settings)
    service = Service(settings, folder)
    try:
        service.start("gateway", "worker", "reaper")
        service.wait_ready()
        key = Keys(client, settings, required=True).create("conformance")
        fields = {"steps": 2, "num_frames": 9}
        yield Server(f"{service.url}/v1", key, fields, (client, settings))
    finally:
        service.close()
        client.close()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator["openai.OpenAI"]:
    """Of the server, as most would make it."""
    with server.client() as found:
        yield found


@pytest.fixture(scope="session")
def finished(client: "openai.OpenAI", server: Server) -> Any:
    """A video that is completed, for all tests that only read."""
    video = client.videos.create(prompt="a green field", extra_body=server.fields)
    return client.videos.poll(video.id, poll_interval_ms=200)


@pytest.fixture
def own(server: Server) -> Any:
    """Our own stack's Redis and settings; skips where another server is asked."""
    if server.own is None:
        pytest.skip("only our own stack can be brought to do this")
    return server.own
