"""The document against what the service really answers."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.openapi import MEANS, complete


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def links(value: Any) -> set[str]:
    """Every $ref below a value."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(links, value.values()))
    return set().union(*map(links, value)) if isinstance(value, list) else set()


def test_every_link_leads_somewhere(document: dict[str, Any]) -> None:
    found = links(document)
    assert "#/components/schemas/SubjectIn" in found
    for link in found:
        at = document
        for part in link.removeprefix("#/").split("/"):
            at = at[part]


def test_no_answer_is_promised_that_never_comes(document: dict[str, Any]) -> None:
    assert "HTTPValidationError" not in str(document)


ASKED = {
    400: ("post", "/v1/videos", {"json": {}}),
    404: ("get", "/v1/videos/{video_id}", {}),
    415: ("post", "/v1/videos", {"content": b"x", "headers": {"content-type": "text/plain"}}),
    503: ("get", "/readyz", {}),
}


@pytest.mark.parametrize("status", ASKED)
def test_what_comes_is_documented(
    client: TestClient, document: dict[str, Any], status: int
) -> None:
    method, path, given = ASKED[status]
    answer = client.request(method, path.replace("{video_id}", "none"), **given)
    assert answer.status_code == status
    assert str(status) in document["paths"][path][method]["responses"]


def test_every_error_has_the_one_shape(document: dict[str, Any]) -> None:
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) in MEANS and "content" in response:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Error"}


def test_what_a_route_documents_itself_stays() -> None:
    own = {"description": "its own"}
    made = complete({"paths": {"/x": {"get": {"responses": {"404": own, "422": {}}}}}})
    assert made["paths"]["/x"]["get"]["responses"]["404"] == own
    assert "422" not in made["paths"]["/x"]["get"]["responses"]


def test_every_route_stands_under_a_heading_that_says_what_it_is_for(
    document: dict[str, Any],
) -> None:
    told = {tag["name"] for tag in document["tags"] if tag["description"]}
    used = {
        tag for path in document["paths"].values() for one in path.values() for tag in one["tags"]
    }
    assert used == told and document["tags"][0]["name"] == "videos"
