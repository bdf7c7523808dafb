"""Routes get one House per application, made by its lifespan."""

from fastapi import FastAPI
from fastapi.testclient import TestClient

from service.app import create_app
from service.deps import House, TheHouse
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
