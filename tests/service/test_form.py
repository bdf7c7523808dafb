"""Bodies taken apart: what the two wire forms mean, before anybody asks what the fields mean."""

import base64
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from service.errors import RequestError
from service.form import Raw, parse_json, read_body
from service.intake import Upload


@pytest.fixture
def seen() -> list[Raw]:
    return []


@pytest.fixture
def probe(seen: list[Raw]) -> TestClient:
    app = FastAPI()

    @app.post("/")
    async def take(request: Request) -> None:
        seen.append(await read_body(request))

    return TestClient(app)


def test_multipart(probe: TestClient, seen: list[Raw]) -> None:
    probe.post(
        "/",
        data={"prompt": "p", "subjects": '[{"name": "a"}]'},
        files=[("images", ("1.png", b"one")), ("input_reference[]", ("2.png", b"two"))],
    )
    assert seen[0].fields == {"prompt": "p", "subjects": [{"name": "a"}]}
    assert seen[0].pictures == [
        Upload("images", "1.png", b"one"),
        Upload("input_reference", "2.png", b"two"),
    ]


def test_urlencoded(probe: TestClient, seen: list[Raw]) -> None:
    probe.post("/", data={"prompt": "a b", "seed": "3"})
    assert seen == [Raw({"prompt": "a b", "seed": "3"}, [])]


def test_json_lifts_the_pictures_out(probe: TestClient, seen: list[Raw]) -> None:
    text = base64.b64encode(b"bytes").decode()
    subjects = [{"name": "anna", "image": text}, {"name": "bob", "image": f"data:x;base64,{text}"}]
    probe.post("/", json={"prompt": "p", "subjects": subjects, "input_reference": text})
    assert seen[0].fields["subjects"] == [
        {"name": "anna", "image": "subjects[0].image"},
        {"name": "bob", "image": "subjects[1].image"},
    ]
    assert [one.data for one in seen[0].pictures] == [b"bytes"] * 3


def test_null_is_absent(probe: TestClient, seen: list[Raw]) -> None:
    probe.post("/", json={"prompt": "p", "seed": None})
    assert seen[0].fields == {"prompt": "p"}


@pytest.mark.parametrize(
    "text", ["{", "[1,]", '{"a": 1, "a": 2}', "[NaN]", "[-Infinity]", "[" * 100_000, "1" * 5000]
)
def test_what_is_no_json_is_told_with_its_field(text: str) -> None:
    with pytest.raises(RequestError, match="subjects: not valid JSON") as told:
        parse_json(text, "subjects")
    assert told.value.param == "subjects"


@pytest.mark.parametrize(
    "image", ["http://x", "https://x", "file:///x", "s3://b", {"image_url": 1}]
)
def test_nothing_is_fetched(probe: TestClient, image: Any) -> None:
    with pytest.raises(RequestError, match="fetches no addresses"):
        probe.post("/", json={"prompt": "p", "subjects": [{"name": "a", "image": image}]})


@pytest.mark.parametrize("image", ["not base64!", "abc", 3, ["x"], "data:image/png,raw"])
def test_what_is_no_base64_is_told(probe: TestClient, image: Any) -> None:
    with pytest.raises(RequestError, match=r"subjects\[0\].image: must be") as told:
        probe.post("/", json={"prompt": "p", "subjects": [{"name": "a", "image": image}]})
    assert told.value.param == "subjects[0].image"
