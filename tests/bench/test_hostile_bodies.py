"""Bodies are as broken as they say, and the same for the same seed."""

import json
import random

import pytest

from bench.hostile_bodies import doors, films, forms, json_bodies, values
from bench.hostile_case import FORM, JSON, Case

ALL = (forms, values, json_bodies, doors, films)


def named(case: Case) -> tuple[str, str, str]:
    return case.name, case.type, case.path


@pytest.mark.parametrize("each", ALL)
def test_the_seed_decides(each: object) -> None:
    assert callable(each)
    once, again = ([named(case) for case in each(random.Random(3))] for _ in range(2))
    assert once == again and len(once) > 50


def test_json_is_deep_wide_and_half() -> None:
    found = {case.name: case for case in json_bodies(random.Random(1))}
    assert found["500 deep in prompt, ["].make().count(b"[") == 500
    assert len(json.loads(found["100,000 keys"].make())) == 100_001
    half = json.loads(found["half of a character in prompt"].make())["prompt"]
    with pytest.raises(UnicodeEncodeError):
        half.encode()
    emoji = json.loads(found["17 MB of one string with an emoji"].make())["prompt"]
    assert emoji[:2] == "\U0001f600" * 2


def test_a_right_value_is_among_the_wrong_ones() -> None:
    found = {case.name: case for case in values(random.Random(1))}
    assert json.loads(found["seed: 100000000000000000"].make()) == {
        "prompt": "a meadow", "seed": 10**17,
    }  # fmt: skip
    assert found["seed: NaN"].make().endswith(b'"seed": NaN}')


def test_forms_without_end_and_with_too_much() -> None:
    found = {case.name: case for case in forms(random.Random(1))}
    assert found["10,000 parts"].make().count(b"content-disposition") == 10_000
    assert not found["without an end"].make().endswith(b"--\r\n")
    assert found["b'+2AA-' in utf-7"].type == f"{FORM}; charset=utf-7"
    assert sum(case.type == JSON for case in found.values()) > 50
    assert found["a body of 98 MB"].slow


def test_an_edits_photo_comes_before_its_video() -> None:
    first = next(iter(films(random.Random(1))))
    body = first.make()
    assert 0 < body.index(b'name="images"') < body.index(b'name="video"')
    assert {case.path for case in doors(random.Random(1))} > {"/v1/videos", "/v1/videos/%00"}
