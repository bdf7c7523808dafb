"""Routes get one House per application, and name who may call, or the service does not start."""

from collections.abc import Iterator

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient

from service import deps
from service.app import create_app
from service.deps import PUBLIC, House, Operator, Reader, TheHouse, Writer, unguarded
from workers.settings import Settings


def test_a_route_is_given_the_applications_house(settings: Settings) -> None:
    app: FastAPI = create_app(settings)
    seen: list[House] = []

    @app.get("/probe")
    def probe(house: TheHouse) -> None:
        seen.append(house)

    with TestClient(app) as client:
        for _ in range(2):
            assert client.get("/probe").status_code == 200
        assert seen == [app.state.house] * 2


def test_every_route_is_public_or_requires_a_scope(settings: Settings) -> None:
    app = create_app(settings)
    assert unguarded(app) == []
    private = {path for path in app.openapi()["paths"] if path not in PUBLIC}
    assert len(private) >= 6
    assert [path for path in private if not path.startswith("/v1/")] == ["/metrics"]


def test_a_route_that_asks_nobody_is_found_wherever_it_hides(settings: Settings) -> None:
    app = create_app(settings)
    inner, outer = APIRouter(), APIRouter()

    @inner.get("/inner")
    def forgotten(house: TheHouse) -> None: ...

    @inner.get("/guarded")
    def guarded(caller: Reader) -> None: ...

    outer.include_router(inner)
    app.include_router(outer)
    app.mount("/files", FastAPI())
    assert unguarded(app) == ["/inner", "/files"]


def test_an_application_with_such_a_route_does_not_start(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deps, "PUBLIC", PUBLIC - {"/healthz"})
    with pytest.raises(AssertionError, match=r"not public: \['/healthz'\]"):
        create_app(settings)


@pytest.fixture
def strict(settings: Settings) -> Iterator[TestClient]:
    """An application that requires keys, with a route for each scope."""
    app = create_app(settings.model_copy(update={"auth": "keys"}))

    @app.get("/read")
    def read(caller: Reader) -> str:
        return caller.tenant

    @app.get("/write")
    def write(caller: Writer) -> str:
        return caller.tenant

    @app.get("/admin")
    def admin(caller: Operator) -> str:
        return caller.tenant

    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("scope", ["read", "write", "admin"])
def test_a_scope_opens_its_own_routes_only(strict: TestClient, scope: str) -> None:
    house: House = strict.app.state.house  # type: ignore[attr-defined]
    headers = {"Authorization": f"Bearer {house.keys.create('acme', scopes=[scope])}"}
    for path in ("read", "write", "admin"):
        answer = strict.get(f"/{path}", headers=headers)
        if path == scope:
            assert answer.json() == "acme"
        else:
            assert answer.status_code == 403
            assert answer.json()["error"]["code"] == "insufficient_scope"


def test_without_a_key_nothing_but_how_to_get_in(strict: TestClient) -> None:
    answer = strict.get("/read")
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["x-request-id"].startswith("req_")


def test_health_is_for_everybody_and_its_reasons_for_operators(strict: TestClient) -> None:
    house: House = strict.app.state.house  # type: ignore[attr-defined]
    assert strict.get("/readyz").json() == {"status": "not ready"}
    for token in ("none", house.keys.create("acme")):
        answer = strict.get("/readyz", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
    headers = {"Authorization": f"Bearer {house.keys.create('acme', scopes=['admin'])}"}
    assert "checks" in strict.get("/readyz", headers=headers).json()
