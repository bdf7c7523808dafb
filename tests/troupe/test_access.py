"""The operator's commands find the service's Redis, or say why not."""

from pathlib import Path

import pytest
import typer

from service.ledger import Ledger
from tests.service.rig import redis_url, settings
from troupe.access import note, operating
from workers.settings import Settings

__all__ = ["redis_url", "settings"]


def test_the_environments_redis_is_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TROUPE_REDIS_URL", settings.redis_url)
    monkeypatch.setenv("TROUPE_KEY_PREFIX", settings.key_prefix)
    with operating() as (client, found):
        note(client, found, "acme", "x", "y")
        assert Ledger(client, found).books().balanced
        assert client.llen(f"{settings.key_prefix}:audit") == 1


def test_without_one_it_is_that_of_the_service_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "TROUPE_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with operating() as (_, found):
        assert found.redis_url == "redis://127.0.0.1:6379/0"
    (tmp_path / ".troupe" / "redis").mkdir(parents=True)
    with operating() as (_, found):
        assert found.redis_url == f"unix://{tmp_path}/.troupe/redis/redis.sock?db=0"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TROUPE_REDIS_URL", "redis://me:secret@127.0.0.1:1/0", "No Redis answers at redis://127"),
        ("TROUPE_MAX_QUEUED", "many", "TROUPE_MAX_QUEUED: "),
    ],
)
def test_what_is_wrong_is_said_without_a_password(
    name: str,
    value: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(typer.Exit), operating() as (client, found):
        note(client, found, "acme", "x", "y")
    said = capsys.readouterr().err
    assert words in said and "secret" not in said and "Traceback" not in said
