"""The official openai SDK with keys of ours, against our gateway as a process."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.auth import Keys
from service.ledger import connect
from service.tenants import Tenants
from tests.service.rig import Service, picture, redis_url, settings
from workers.settings import Settings

openai = pytest.importorskip("openai")

__all__ = ["redis_url", "settings"]
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@pytest.fixture
def service(settings: Settings, tmp_path: Path) -> Iterator[Service]:
    service = Service(settings.model_copy(update={"auth": "keys"}), tmp_path)
    try:
        service.start("gateway")
        service.wait_listening()
        yield service
    finally:
        service.close()


@pytest.fixture
def keys(settings: Settings) -> Keys:
    return Keys(connect(settings), settings, required=True)


def sdk(service: Service, token: str) -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{service.url}/v1", api_key=token)


def create(client: "openai.OpenAI") -> "openai.types.Video":
    anna = ("anna.png", picture("teal"), "image/png")
    return client.videos.create(prompt="@anna waves", input_reference=anna)


def test_each_tenant_has_its_own_videos(service: Service, keys: Keys) -> None:
    acme, zeta = (sdk(service, keys.create(tenant)) for tenant in ("acme", "zeta"))
    made = create(acme)
    assert acme.videos.retrieve(made.id).status == "queued"
    assert [one.id for one in acme.videos.list()] == [made.id]
    assert list(zeta.videos.list()) == []
    with pytest.raises(openai.NotFoundError):
        zeta.videos.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        zeta.videos.delete(made.id)
    assert acme.videos.delete(made.id).deleted


def test_the_sdk_understands_why_it_is_refused(
    service: Service, keys: Keys, settings: Settings
) -> None:
    with pytest.raises(openai.AuthenticationError, match="must be 'Bearer trp_"):
        sdk(service, "none").videos.list()
    with pytest.raises(openai.PermissionDeniedError, match="scope 'write'"):
        create(sdk(service, keys.create("acme", scopes=["read"])))
    Tenants(connect(settings), settings).set("acme", requests_per_minute=1)
    acme = sdk(service, keys.create("acme")).with_options(max_retries=0)
    create(acme)
    with pytest.raises(openai.RateLimitError, match="New videos a minute: at most 1") as caught:
        create(acme)
    assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60


def test_a_key_that_is_revoked_ends_within_five_seconds(service: Service, keys: Keys) -> None:
    token = keys.create("acme")
    client = sdk(service, token)
    client.videos.list()
    keys.revoke(token.split("_")[1])
    end = time.monotonic() + 5.5
    while time.monotonic() < end:
        try:
            client.videos.list()
        except openai.AuthenticationError as error:
            assert "is revoked" in str(error)
            return
        time.sleep(0.1)
    raise AssertionError("still heard after five seconds")


def test_no_key_is_in_the_log(service: Service, keys: Keys) -> None:
    token = keys.create("acme")
    sdk(service, token).videos.list()
    with pytest.raises(openai.AuthenticationError):
        sdk(service, token[:-1] + "!").videos.list()
    assert token.split("_")[2][:20] not in service.log("gateway")
