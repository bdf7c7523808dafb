"""The fields of requests about subjects."""

from typing import Any

import pytest

from service.errors import RequestError
from service.subject_schemas import CreateCharacter, CreateSubject


def test_what_is_taken() -> None:
    body = CreateSubject.parse({"name": "Zoe\u0308", "consent": {"basis": "self"}})
    assert body.name == "Zo\u00eb" and body.consent is not None
    assert (body.consent.statement, body.consent.by) == ("", None)
    assert CreateCharacter.parse({"name": "Mossy the turtle"}).name == "Mossy the turtle"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "a", "nmae": "b"}, "nmae"),
        ({"name": "a", "consent": {}}, "consent.basis"),
        ({"name": "a", "consent": {"basis": "self", "who": "x"}}, "consent.who"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as told:
        CreateSubject.parse(fields)
    assert told.value.param == param
