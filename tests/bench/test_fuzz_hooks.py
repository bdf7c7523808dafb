"""Half of a character goes into one body in eight, where there is text."""

import json

from bench.fuzz_hooks import HALF, chosen, halved, on_the_wire


def test_the_first_text_is_halved() -> None:
    assert halved("a") == "a" + HALF
    body = {"n": 1, "list": [2, {"b": "x"}, "y"], "c": "z"}
    assert halved(body) == {"n": 1, "list": [2, {"b": "x" + HALF}, "y"], "c": "z"}
    assert halved({"n": [1, None]}) == {"n": [1, None]}


def test_one_body_in_eight_by_its_content() -> None:
    count = sum(chosen({"seed": n}) for n in range(4000))
    assert 400 < count < 600
    assert chosen({"a": HALF}) == chosen({"a": HALF})


def test_what_is_sent_is_json_with_the_half_as_an_escape() -> None:
    bodies = [{"prompt": str(number)} for number in range(99)]
    sent = [on_the_wire(None, body) for body in bodies]
    halves = [data for data in sent if rb"\ud800" in data]
    assert 3 < len(halves) < 30
    assert [json.loads(data) for data in sent if data not in halves] == [
        body for body in bodies if not chosen(body)
    ]
    assert on_the_wire(None, b"\xff") == b"\xff"
    assert json.loads(on_the_wire(None, None)) is None
