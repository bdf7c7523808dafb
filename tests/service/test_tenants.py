"""Tenants' bounds over a real Redis, in the hash that the ledger reads."""


import pytest
import redis

from service.errors import RequestError
from service.tenants import BOUNDS, Tenant, Tenants
from workers.settings import Settings


@pytest.fixture
def tenants(connection: redis.Redis, settings: Settings) -> Tenants:
    return Tenants(connection, settings)


def test_nobody_is_bound_who_was_not_set(tenants: Tenants) -> None:
    assert tenants.read("local") == Tenant("local")
    assert set(Tenant("local").bounds().values()) == {1.0, None}
    assert tenants.listing() == []


def test_bounds_are_set_one_by_one_and_taken_away(
    tenants: Tenants, connection: redis.Redis, settings: Settings
) -> None:
    tenants.set("acme", weight=2.5, max_running=4, gpu_seconds_per_hour=3600)
    found = tenants.set("acme", max_queued=10, max_running=None)
    assert found == Tenant("acme", 2.5, None, 10, None, 3600) == tenants.read("acme")
    assert connection.hgetall(f"{settings.key_prefix}:tenant:acme") == {
        "weight": "2.5",
        "max_queued": "10",
        "gpu_seconds_per_hour": "3600",
    }
    tenants.set("zeta")
    assert [one.name for one in tenants.listing()] == ["acme", "zeta"]


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 10**10])
def test_numbers_that_cannot_be_are_refused(
    tenants: Tenants, name: str, value: float
) -> None:
    with pytest.raises(RequestError) as caught:
        tenants.set("acme", **{name: value})
    assert caught.value.param == name
    assert tenants.listing() == []


def test_names_that_cannot_be_are_refused(tenants: Tenants) -> None:
    for tenant, bounds in (("A", {}), ("acme", {"speed": 1})):
        with pytest.raises(RequestError):
            tenants.set(tenant, **bounds)
