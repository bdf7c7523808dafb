"""Keys over a real Redis: who is let in, who is not and hears why, and what is kept of a key."""

import hashlib
import time
from typing import Any

import pytest
import redis

from service import auth
from service.auth import EVERYBODY, Keys
from service.errors import Forbidden, LedgerDown, NotFound, RequestError, Unauthenticated
from service.ledger import connect
from tests.service.rig import keys_of
from workers.settings import Settings


@pytest.fixture
def keys(connection: redis.Redis, settings: Settings) -> Keys:
    return Keys(connection, settings, required=True)


def id_in(token: str) -> str:
    return token.split("_")[1]


def refused(keys: Keys, header: str | None) -> str:
    with pytest.raises(Unauthenticated) as caught:
        keys.authenticate(header)
    return str(caught.value)


def test_a_key_opens_for_its_tenant_and_scopes(keys: Keys) -> None:
    token = keys.create("acme", "ci", ["read", "write"])
    for scheme in ("Bearer", "bearer"):
        caller = keys.authenticate(f"{scheme} {token}")
        assert (caller.tenant, caller.key_id) == ("acme", id_in(token))
    caller.need("write")
    with pytest.raises(Forbidden, match="'admin'; yours has: read, write"):
        caller.need("admin")


def test_of_the_secret_only_its_digest_is_kept_and_nothing_logged(
    keys: Keys,
    connection: redis.Redis,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    token = keys.create("acme")
    _, key_id, secret = token.split("_")
    assert (len(key_id), len(secret)) == (12, 43) and 62 ** len(secret) > 2**256
    kept = connection.hgetall(f"{settings.key_prefix}:key:{key_id}")
    assert kept["digest"] == hashlib.sha256(secret.encode()).hexdigest()
    keys.authenticate(f"Bearer {token}")
    refused(keys, f"Bearer {token}x")
    assert secret not in str(kept) + caplog.text
    assert len(keys_of(settings)) == 3  # the record, the list, the last use


def test_unknown_and_wrong_secret_sound_the_same(keys: Keys) -> None:
    token = keys.create("acme")
    wrong = token[:-1] + ("a" if token[-1] != "a" else "b")
    unknown = token.replace(id_in(token), "0" * 12)
    assert refused(keys, f"Bearer {wrong}") == refused(keys, f"Bearer {unknown}")


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer none", "Basic trp_x_y", "trp_" + "a" * 12 + "_" + "b" * 43]
)
def test_what_is_no_key_is_refused_without_asking_redis(
    header: str, settings: Settings, connection: redis.Redis
) -> None:
    lost = settings.model_copy(update={"redis_url": "unix:///nowhere"})
    assert "must be 'Bearer trp_" in refused(Keys(connect(lost), lost, required=True), header)


def test_a_missing_key_is_asked_for(keys: Keys) -> None:
    assert "send your API key" in refused(keys, None)


def test_an_expired_key_is_told_so_to_its_holder_only(keys: Keys) -> None:
    token = keys.create("acme", life_s=0.2)
    assert keys.authenticate(f"Bearer {token}").tenant == "acme"
    time.sleep(0.3)
    # Remembered no longer than it lives, however long a yes is remembered else.
    assert refused(keys, f"Bearer {token}") == f"The API key trp_{id_in(token)} is expired."
    other = token[:-3] + ("abc" if not token.endswith("abc") else "abd")
    assert "expired" not in refused(keys, f"Bearer {other}")


def test_a_revoked_key_ends_at_once_for_others_and_soon_for_who_remembers(
    keys: Keys, connection: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "REMEMBER_S", 0.3)
    header = f"Bearer {keys.create('acme')}"
    keys.authenticate(header)
    keys.revoke(id_in(header))
    fresh = Keys(connection, settings, required=True)
    assert "is revoked" in refused(fresh, header)
    assert keys.recall(header) is not None
    time.sleep(0.35)
    assert keys.recall(header) is None and "is revoked" in refused(keys, header)


def test_a_yes_is_remembered_and_asks_redis_no_more(
    keys: Keys, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = f"Bearer {keys.create('acme')}"
    assert keys.recall(header) is None
    caller = keys.authenticate(header)
    monkeypatch.setattr(keys, "_redis", None)
    assert keys.authenticate(header) is caller is keys.recall(header)


def test_what_is_remembered_stays_small(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "REMEMBER_MOST", 2)
    headers = [f"Bearer {keys.create('acme')}" for _ in range(3)]
    for header in headers:
        keys.authenticate(header)
    assert [keys.recall(header) is not None for header in headers] == [False, True, True]


def test_a_rotated_key_has_a_successor_and_an_end(keys: Keys) -> None:
    old = keys.create("acme", "ci", ["read"], life_s=1000)
    new = keys.rotate(id_in(old), overlap_s=0.2)
    for token in (old, new):
        assert keys.authenticate(f"Bearer {token}").tenant == "acme"
    before, after = keys.read(id_in(old)), keys.read(id_in(new))
    assert (after.name, after.scopes, after.tenant) == ("ci", ("read",), "acme")
    assert after.expires_ms - after.created_ms == 1_000_000
    assert 0 <= before.expires_ms - after.created_ms - 200 < 5
    time.sleep(0.3)
    assert "expired" in refused(keys, f"Bearer {old}")
    assert keys.authenticate(f"Bearer {new}").tenant == "acme"
    with pytest.raises(RequestError, match="has ended"):
        keys.rotate(id_in(old), overlap_s=1)
    # The overlap never prolongs a life, and the successor's successor lives as long as was meant.
    last = keys.read(id_in(keys.rotate(id_in(new), overlap_s=10_000)))
    assert keys.read(id_in(new)).expires_ms == after.expires_ms
    assert last.expires_ms - last.created_ms == 1_000_000


def test_the_last_use_is_kept_to_the_minute(
    keys: Keys, monkeypatch: pytest.MonkeyPatch, connection: redis.Redis, settings: Settings
) -> None:
    header = f"Bearer {keys.create('acme')}"
    assert keys.read(id_in(header)).used_ms == 0
    keys.authenticate(header)
    used = keys.read(id_in(header)).used_ms
    assert used >= keys.read(id_in(header)).created_ms
    Keys(connection, settings, required=True).authenticate(header)
    assert keys.read(id_in(header)).used_ms == used
    monkeypatch.setattr(auth, "USED_EVERY_MS", 0)
    Keys(connection, settings, required=True).authenticate(header)
    assert keys.read(id_in(header)).used_ms >= used


def test_keys_are_listed_by_tenant(keys: Keys) -> None:
    ids = [id_in(keys.create(tenant)) for tenant in ("acme", "zeta", "acme") * 20]
    assert [key.id for key in keys.listing()] == ids  # many of them of one millisecond
    assert [key.id for key in keys.listing("zeta")] == ids[1::3]


def test_without_keys_everybody_is_local(connection: redis.Redis, settings: Settings) -> None:
    open_house = Keys(connection, settings, required=False)
    for header in (None, "Bearer none"):
        assert open_house.authenticate(header) is EVERYBODY is open_house.recall(header)
    assert EVERYBODY.tenant == "local" and EVERYBODY.scopes == set(auth.SCOPES)


@pytest.mark.parametrize("tenant", ["", "Acme", "a/b", "-a", "a" * 33, "a b", "ä", "a\n"])
def test_a_tenants_name_is_plain(keys: Keys, tenant: str) -> None:
    with pytest.raises(RequestError, match="tenant: "):
        keys.create(tenant)


def test_what_cannot_be_is_refused(keys: Keys) -> None:
    wrong: list[dict[str, Any]] = [{"scopes": []}, {"scopes": ["all"]}]
    for given in [*wrong, {"name": "a\nb"}, {"life_s": 0.0}]:
        with pytest.raises(RequestError):
            keys.create("acme", **given)
    for act in (keys.revoke, keys.read, lambda key: keys.rotate(key, 1)):
        with pytest.raises(NotFound, match="no key 'none'"):
            act("none")


def test_without_redis_it_fails_clearly(settings: Settings) -> None:
    lost = settings.model_copy(update={"redis_url": "unix:///nowhere"})
    keys = Keys(connect(lost), lost, required=True)
    with pytest.raises(LedgerDown):
        keys.authenticate("Bearer trp_" + "a" * 12 + "_" + "b" * 43)
