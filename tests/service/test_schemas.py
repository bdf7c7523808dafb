"""From the wire's fields to a Spec; every refusal under the name the field had on the wire."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from engine.presets import MINIATURE, WAN_1_3B
from engine.spec import Guidance
from service.errors import RequestError
from service.schemas import CreateVideo, Video


def parse(**fields: Any) -> CreateVideo:
    return CreateVideo.parse({"prompt": "a field", **fields})


def test_nothing_given_means_the_presets_defaults() -> None:
    spec = parse().to_spec(MINIATURE, ())
    usual = MINIATURE.defaults
    assert (spec.width, spec.height, spec.num_frames) == (96, 64, 17)
    assert (spec.fps, spec.steps, spec.solver) == (usual.fps, usual.steps, usual.solver)
    assert spec.guidance == Guidance(scale=usual.guidance, identity_scale=usual.identity_scale)


def test_text_and_numbers_are_read_alike() -> None:
    text = parse(fps="8", steps=" 12 ", seed="3", guidance="2", num_frames="9")
    numbers = parse(fps=8, steps=12, seed=3, guidance=2, num_frames=9)
    assert text == numbers


def test_guidance_keeps_what_it_was_not_told() -> None:
    spec = parse(guidance={"mode": "dual", "image_scale": 4}).to_spec(MINIATURE, ())
    usual = Guidance.assumed(MINIATURE)
    assert usual.identity_scale > 0
    assert spec.guidance == replace(usual, mode="dual", image_scale=4.0)
    pulled = parse(guidance={"subject_scale": 3}).to_spec(MINIATURE, ())
    assert pulled.guidance == replace(usual, subject_scale=3.0)
    moved = parse(guidance={"identity_scale": "0"}).to_spec(MINIATURE, ())
    assert moved.guidance == Guidance(scale=2.5)
    with pytest.raises(RequestError, match="identity_scale: must be 0: this model brings nobody"):
        parse(guidance={"identity_scale": 0.2}).to_spec(WAN_1_3B, ())
    assert parse(guidance=1).to_spec(MINIATURE, ()).guidance.is_off


def test_limits_are_the_presets() -> None:
    large = parse(size="832x480", num_frames=81)
    assert large.to_spec(WAN_1_3B, ()).width == 832
    with pytest.raises(RequestError, match="size: width must lie between 32 and 128"):
        large.to_spec(MINIATURE, ())


@pytest.mark.parametrize("name", sorted(CreateVideo.model_fields))
def test_every_field_refuses_nonsense_by_its_name(name: str) -> None:
    with pytest.raises(RequestError) as told:
        parse(**{name: {"nonsense": []}})
    assert (told.value.param or "").startswith(name)
    assert str(told.value).startswith(name)


def test_the_nearest_field_is_offered() -> None:
    for wrong, right in (("frames", "num_frames"), ("image", "images"), ("promp", "prompt")):
        with pytest.raises(RequestError, match=f"Did you mean '{right}'"):
            parse(**{wrong: "x"})
    with pytest.raises(RequestError, match="Known fields: prompt, subjects"):
        parse(xyz="x")


def test_within_a_field_its_own_fields_are_offered() -> None:
    given = {"name": "anna", "imgae": "anna.png"}
    with pytest.raises(RequestError, match=r"subjects\[0\].imgae: .* Did you mean 'image'"):
        parse(prompt="x", subjects=[given])
    with pytest.raises(RequestError, match=r"guidance.foo: .* Known fields: mode, scale, "):
        parse(prompt="x", guidance={"foo": 1})
    with pytest.raises(RequestError, match="Did you mean 'identity_scale'"):
        parse(prompt="x", guidance={"identityscale": 0})
    with pytest.raises(RequestError, match="consent.bases: .* Did you mean 'basis'"):
        parse(prompt="x", subjects=[{"consent": {"basis": "self", "bases": "x"}}])


def test_what_an_answer_tells_of_guidance_can_be_asked_for() -> None:
    told = asdict(Guidance.assumed(MINIATURE))
    again = parse(prompt="x", guidance=told).to_spec(MINIATURE, ())
    assert again.guidance == Guidance.assumed(MINIATURE)
    part = parse(prompt="x", guidance={"interval": [0.2, 0.9]}).to_spec(MINIATURE, ())
    assert part.guidance.interval == (0.2, 0.9)
    for wrong in ([0.9, 0.2], [0.1], "always", [0, 2]):
        with pytest.raises(RequestError) as refused:
            parse(prompt="x", guidance={"interval": wrong}).to_spec(MINIATURE, ())
        assert (refused.value.param or "").startswith("guidance.interval")


@pytest.mark.parametrize(("name", "param"), [("", "''"), ("k" * 10**6, "k" * 80)])
def test_a_field_of_no_name_or_a_long_one_is_named(name: str, param: str) -> None:
    with pytest.raises(RequestError, match="unknown field") as told:
        parse(**{name: "x"})
    assert told.value.param == param and len(str(told.value)) < 500


def test_the_video_has_openais_fields() -> None:
    openai = (
        "id object model status progress created_at completed_at expires_at prompt"
        " remixed_from_video_id seconds size error"
    )
    assert list(Video.model_fields)[:13] == openai.split()
