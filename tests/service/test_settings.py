"""Settings: few, typed, from the environment."""

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_there_are_at_most_twenty_and_each_is_described() -> None:
    fields = Settings.model_fields
    assert len(fields) <= 20
    assert all(field.description for field in fields.values())


def test_everything_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "TROUPE_REDIS_URL", "TROUPE_BLOBS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert Settings().redis_url == "redis://127.0.0.1:6379/0"


def test_the_platforms_redis_url_is_understood_and_ours_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TROUPE_REDIS_URL", raising=False)
    monkeypatch.setenv("REDIS_URL", "redis://platform:6379/0")
    assert Settings().redis_url == "redis://platform:6379/0"
    monkeypatch.setenv("TROUPE_REDIS_URL", "redis://ours:6379/0")
    assert Settings().redis_url == "redis://ours:6379/0"


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "memory://"])
def test_what_is_no_redis_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must begin with redis://"):
        Settings(redis_url=url)


def test_numbers_out_of_range_are_refused() -> None:
    for wrong in ({"lease_s": 0}, {"max_attempts": 0}, {"max_picture_mb": -1}):
        with pytest.raises(ValidationError):
            Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "kombus"),
    [
        ("redis://h:6379/2", "redis://h:6379/2"),
        ("unix:///run/r.sock", "redis+socket:///run/r.sock?virtual_host=0"),
        ("unix:///run/r.sock?db=3", "redis+socket:///run/r.sock?virtual_host=3"),
    ],
)
def test_the_broker_is_the_ledgers_redis_in_kombus_spelling(ours: str, kombus: str) -> None:
    assert Settings(redis_url=ours).celery_broker == kombus


def test_the_broker_may_be_another_redis() -> None:
    settings = Settings(redis_url="unix:///run/r.sock", broker_url="redis://b:6379/0")
    assert settings.celery_broker == "redis://b:6379/0"
