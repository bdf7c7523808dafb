"""The two forms in which a picture is sent are those that the service reads."""

from fastapi.testclient import TestClient

from bench.hostile_case import FORM, JSON, form, inline, part, with_picture
from bench.hostile_pictures import sound
from tests.service.rig import client, redis_url, settings

__all__ = ["client", "redis_url", "settings"]


def test_both_forms_are_read(client: TestClient) -> None:
    for kind, body in ((FORM, with_picture(sound("png"))), (JSON, inline(sound("png")))):
        answer = client.post("/v1/videos", content=body, headers={"content-type": kind})
        assert answer.status_code == 202, answer.text
        assert answer.json()["subjects"][0]["name"] == "anna"


def test_a_part_has_what_it_is_given() -> None:
    body = form([part("a", b"1", b"f\0", more=b"x: y\r\n")])
    head, _, value = body.partition(b"\r\n\r\n")
    assert b'name="a"; filename="f\0"' in head and head.endswith(b"x: y")
    assert value == b"1\r\n--b0undary--\r\n"
