"""Other servers' names of our fields."""

from typing import Any

import pytest

from service.aliases import ABSENT, translated
from service.errors import RequestError


def test_other_names_mean_the_same() -> None:
    asked = {"prompt": "p", "num_inference_steps": "7", "guidance_scale": 2, "width": "96"}
    assert translated({**asked, "height": 64, "num_outputs_per_prompt": 3}) == {
        "prompt": "p", "steps": "7", "guidance": 2, "size": "96x64", "n": 3,
    }  # fmt: skip


def test_our_own_names_stay_as_they_are() -> None:
    asked = {"prompt": "p", "steps": 7, "size": "96x64", "anything": None}
    assert translated(asked) == asked


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"steps": 3, "num_inference_steps": 3}, "num_inference_steps"),
        ({"size": "96x64", "width": 96, "height": 64}, "width"),
        ({"width": 96}, "width"),
        ({"height": 96}, "height"),
        *(({name: 1}, name) for name in ABSENT),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as told:
        translated(fields)
    assert told.value.param == param and str(told.value).startswith(f"{param}: ")
