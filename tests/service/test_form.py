"""Bodies taken apart: what the two wire forms mean, before anybody asks what the fields mean."""

import base64
import json
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from service import form
from service.errors import RequestError
from service.form import Raw, fetched, parse_json, read_body
from service.intake import Upload
from service.outward import Outward
from service.settings import MAX_PICTURES
from tests.service.receiver import Receiver, receiving, reply


@pytest.fixture
def seen() -> list[Raw]:
    return []


def probing(seen: list[Raw], outward: Outward | None = None) -> TestClient:
    app = FastAPI()
    @app.post("/")
    async def take(request: Request) -> None:
        raw = await read_body(request, outward)
        if outward is not None:
            raw.pictures = await fetched(raw.pictures, outward)
        seen.append(raw)

    return TestClient(app)


@pytest.fixture
def probe(seen: list[Raw]) -> TestClient:
    return probing(seen)


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
    ("body", "words"),
    [
        (b'{"prompt": "\xed\xa0\x80"}', "not valid JSON"),
        (b'{"prompt": "\\ud800"}', "surrogates not allowed"),
        (b'{"\\udfff": 1}', "surrogates not allowed"),
        (b'{"prompt": [{"a": "\\ud800"}]}', "surrogates not allowed"),
        ("{}".encode("utf-16"), "not valid JSON"),
    ],
)
def test_what_is_no_text_is_no_json(body: bytes, words: str, seen: list[Raw]) -> None:
    with pytest.raises(RequestError, match=words) as told:
        probing(seen).post("/", content=body, headers={"content-type": "application/json"})
    assert (told.value.reason, told.value.http_status) == ("invalid_json", 400)


def test_a_mark_of_byte_order_and_whole_characters_are_taken(
    probe: TestClient, seen: list[Raw]
) -> None:
    body = b"\xef\xbb\xbf" + b'{"prompt": "\\ud83d\\ude00"}'
    probe.post("/", content=body, headers={"content-type": "application/json"})
    assert seen[0].fields == {"prompt": "\U0001f600"}


def test_json_has_a_limit_of_its_own(
    probe: TestClient, seen: list[Raw], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "MAX_JSON_BYTES", 20)
    probe.post("/", json={"prompt": "abc"})
    with pytest.raises(RequestError, match="multipart/form-data") as told:
        probe.post("/", json={"prompt": "abcdefgh"})
    assert (told.value.reason, told.value.http_status) == ("body_too_large", 413)
    assert len(seen) == 1


@pytest.mark.parametrize("coding", ["utf-7", "unicode_escape", "idna", "undefined", "latin-1"])
def test_a_client_does_not_choose_the_codec(probe: TestClient, coding: str) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n+2AA-\r\n--b--\r\n'
    kind = f"multipart/form-data; boundary=b; charset={coding}"
    with pytest.raises(RequestError, match="send utf-8") as told:
        probe.post("/", content=body, headers={"content-type": kind})
    assert told.value.http_status == 415


def test_utf8_may_be_named(probe: TestClient, seen: list[Raw]) -> None:
    body = b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n\xc3\xa9\r\n--b--\r\n'
    kind = 'multipart/form-data; charset="UTF-8"; boundary=b'
    probe.post("/", content=body, headers={"content-type": kind})
    assert seen[0].fields == {"prompt": "\u00e9"}


@pytest.mark.parametrize(
    "image", ["http://x", "HTTPS://x", "file:///x", "s3://b", "ftp://c", {"image_url": 1}]
)
def test_nothing_is_fetched(probe: TestClient, image: Any) -> None:
    with pytest.raises(RequestError, match="fetches no addresses"):
        probe.post("/", json={"prompt": "p", "subjects": [{"name": "a", "image": image}]})


def by_address(url: str) -> list[dict[str, Any]]:
    """Every way to give a picture by its address, as arguments of a POST."""
    subjects = [{"name": "a", "image_url": url}]
    return [
        {"json": {"subjects": subjects}},
        {"json": {"input_reference": {"image_url": url}}},
        {"json": {"images": [url]}},
        {"data": {"subjects": json.dumps(subjects)}},
        {"data": {"input_reference[image_url]": url}},
    ]


@pytest.mark.parametrize("form", range(5))
def test_a_picture_by_address_is_fetched_where_that_is_switched_on(
    seen: list[Raw], form: int
) -> None:
    with receiving(Receiver(reply(200, body=b"picture"))) as server:
        arguments = by_address(f"http://localhost:{server.port}/x.png")[form]
        for outward in (None, Outward("", 100)):
            with pytest.raises(RequestError, match="this server fetches no addresses"):
                probing(seen, outward).post("/", **arguments)
        assert server.seen == []
        probing(seen, Outward(f"localhost:{server.port}", 100)).post("/", **arguments)
        with pytest.raises(RequestError, match="more than") as told:
            probing(seen, Outward(f"localhost:{server.port}", 3)).post("/", **arguments)
    (picture,) = seen[0].pictures
    assert picture.data == b"picture" and told.value.param == picture.field
    if "subjects" in seen[0].fields:
        assert seen[0].fields["subjects"] == [{"name": "a", "image": picture.filename}]


@pytest.mark.parametrize("form", range(5))
def test_an_address_that_holds_the_picture_needs_no_fetching(
    probe: TestClient, seen: list[Raw], form: int
) -> None:
    probe.post("/", **by_address("data:image/png;base64,Ynl0ZXM=")[form])
    assert [one.data for one in seen[0].pictures] == [b"bytes"]


def test_only_so_many_pictures_are_fetched(seen: list[Raw]) -> None:
    with receiving(Receiver(reply(200, body=b"picture"))) as server:
        probe = probing(seen, Outward(f"localhost:{server.port}", 100))
        urls = [f"http://localhost:{server.port}/{n}" for n in range(MAX_PICTURES + 1)]
        with pytest.raises(RequestError, match="at most 8 pictures by address"):
            probe.post("/", json={"images": urls})
        assert server.seen == []
        probe.post("/", json={"images": urls[1:]})
    assert len(server.seen) == len(seen[0].pictures) == MAX_PICTURES


@pytest.mark.parametrize("wire", ["json", "data"])
def test_a_subject_has_one_picture(probe: TestClient, wire: str) -> None:
    subjects: Any = [{"name": "a", "image": "x.png", "image_url": "data:;base64,Ynl0ZXM="}]
    body = {"subjects": json.dumps(subjects) if wire == "data" else subjects}
    with pytest.raises(RequestError, match="image or image_url, not both"):
        probe.post("/", **{wire: body})  # type: ignore[arg-type]


@pytest.mark.parametrize("image", ["not base64!", "abc", 3, ["x"], "data:image/png,raw"])
def test_what_is_no_base64_is_told(probe: TestClient, image: Any) -> None:
    with pytest.raises(RequestError, match=r"subjects\[0\].image: must be") as told:
        probe.post("/", json={"prompt": "p", "subjects": [{"name": "a", "image": image}]})
    assert told.value.param == "subjects[0].image"


OTHERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"image_reference": {"image_url": "https://a/1"}}, ["https://a/1"]),
    ({"image_reference": [{"image_url": "https://a/1"}, "https://a/2"]},
     ["https://a/1", "https://a/2"]),
    ({"reference_url": "https://a/3"}, ["https://a/3"]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "links"), OTHERS)
@pytest.mark.parametrize("as_form", [False, True])
def test_pictures_as_other_servers_take_them(
    body: dict[str, Any], links: list[str], as_form: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    async def fetch(outward: Outward, url: str) -> bytes:
        found.append(url)
        return b"picture"

    monkeypatch.setattr(Outward, "fetch", fetch)
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in body.items()}
    sent = {"data": texts} if as_form else {"json": body}
    assert probing([], Outward("*", 1000)).post("/", **sent).status_code == 200
    assert found == links


def test_there_are_no_files_to_be_named() -> None:
    with pytest.raises(RequestError, match="there are no files here"):
        probing([], Outward("*", 1000)).post("/", json={"image_reference": {"file_id": "f"}})


@pytest.mark.parametrize(
    "sent",
    [
        {"json": {"video": {"id": "v"}}},
        {"data": {"video": '{"id": "v"}'}},
        {"data": {"video[id]": "v"}},
    ],
)
def test_a_video_by_its_id(seen: list[Raw], sent: dict[str, Any]) -> None:
    assert probing(seen).post("/", **sent).status_code == 200
    assert seen[0].fields == {"video": {"id": "v"}} and seen[0].film is None


def test_a_video_as_a_file(seen: list[Raw]) -> None:
    assert probing(seen).post("/", files={"video": ("a.mp4", b"mp4")}).status_code == 200
    assert seen[0].film == Upload("video", "a.mp4", b"mp4") and seen[0].pictures == []
    with pytest.raises(RequestError, match="video: given twice"):
        probing(seen).post("/", files=[("video", ("a.mp4", b"a")), ("video", ("b.mp4", b"b"))])
