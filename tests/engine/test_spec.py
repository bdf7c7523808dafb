"""Requests: what is refused, by which field, and how names bind to the prompt."""

from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from engine.errors import SpecError
from engine.presets import MINIATURE
from engine.spec import PAD_GREY, Guidance, Reference, Spec, Wish, clean, spans, text_of

GOOD = Spec.of(MINIATURE, "@anna waves to @bob", ("anna", "bob"))


def test_the_presets_defaults_are_a_good_request():
    GOOD.validate(MINIATURE.limits)
    assert (GOOD.width, GOOD.height, GOOD.num_frames) == (96, 64, 17)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("prompt", {"prompt": ""}),
        ("prompt", {"prompt": " \n"}),
        ("prompt", {"prompt": None}),
        ("prompt", {"prompt": "@anna @bob " + "x" * 3000}),
        ("prompt", {"prompt": "@anna waves"}),
        ("prompt", {"prompt": "@anna @bob @carl"}),
        ("negative_prompt", {"negative_prompt": 3}),
        ("subjects", {"names": ("anna", "bob", "c", "d", "e")}),
        ("subjects", {"names": ("anna", "anna")}),
        ("subjects", {"names": ("anna", "b b")}),
        ("subjects", {"names": ("anna", "")}),
        ("width", {"width": 97}),
        ("width", {"width": 0}),
        ("width", {"width": -96}),
        ("width", {"width": 10**5000}),
        ("height", {"height": 64.0}),
        ("height", {"height": "64"}),
        ("height", {"height": True}),
        ("num_frames", {"num_frames": 16}),
        ("num_frames", {"num_frames": 1}),
        ("num_frames", {"num_frames": 1001}),
        ("fps", {"fps": 0}),
        ("steps", {"steps": 0}),
        ("steps", {"steps": 10**9}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
        ("solver", {"solver": "magic"}),
        ("guidance.mode", {"guidance": Guidance(mode="triple")}),
        ("guidance.scale", {"guidance": Guidance(scale=float("nan"))}),
        ("guidance.scale", {"guidance": Guidance(scale=float("inf"))}),
        ("guidance.text_scale", {"guidance": Guidance(text_scale=-1)}),
        ("guidance.interval", {"guidance": Guidance(interval=(0.9, 0.1))}),
        ("guidance.interval", {"guidance": Guidance(interval=(0.0, 2.0))}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_refuses_and_names_the_field(field, change):
    with pytest.raises(SpecError) as caught:
        replace(GOOD, **change).validate(MINIATURE.limits)
    assert caught.value.field == field
    assert isinstance(caught.value, ValueError)


def test_refuses_too_many_pixels():
    limits = replace(MINIATURE.limits, max_pixels=96 * 64 - 1)
    with pytest.raises(SpecError, match="pixels"):
        GOOD.validate(limits)


def test_unknown_fields_are_refused():
    with pytest.raises(SpecError) as caught:
        Spec.of(MINIATURE, "hello", colour="red")
    assert caught.value.field == "colour"
    with pytest.raises(SpecError) as caught:
        Spec.from_json({**GOOD.to_json(), "colour": "red"})
    assert caught.value.field == "colour"


def test_the_subjects_own_pull_goes_with_single_guidance():
    assert Guidance(scale=1.0).is_off and not Guidance(scale=1.0, subject_scale=2.0).is_off
    dual = Guidance("dual", 2.5, image_scale=4.0)
    dual.validate(MINIATURE.limits)
    with pytest.raises(SpecError) as caught:
        replace(dual, subject_scale=1.0).validate(MINIATURE.limits)
    assert caught.value.field == "guidance.subject_scale"


def test_identity_guidance_is_for_models_that_bring_readers():
    asked, field = Guidance(identity_scale=0.3), "guidance.identity_scale"
    none, some = (replace(MINIATURE.limits, max_identity_scale=most) for most in (0.0, 1.0))
    asked.validate(some)
    replace(asked, mode="dual").validate(some)
    for limits, scale in ((none, 0.3), (some, 1.1), (some, -0.1), (some, float("nan"))):
        with pytest.raises(SpecError) as caught:
            replace(asked, identity_scale=scale).validate(limits)
        assert caught.value.field == field
    assert asked.is_off == Guidance().is_off  # it is no forward of the transformer


def test_a_record_from_before_there_was_such_a_pull_has_none():
    old = GOOD.to_json()
    del old["guidance"]["subject_scale"], old["guidance"]["identity_scale"]
    assert Spec.from_json(old).guidance == replace(GOOD.guidance, identity_scale=0.0)


def test_survives_a_job_record():
    import json

    spec = replace(GOOD, guidance=Guidance(mode="dual", interval=(0.1, 0.9)), seed=2**53 - 1)
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_signs_vanish_and_every_mention_counts():
    text, places = text_of("@bob and @anna; @bob's hat, anna@bob.org", ("anna", "bob"))
    assert text == "bob and anna; bob's hat, anna@bob.org"
    assert [[text[a:b] for a, b in each] for each in places] == [["anna"], ["bob", "bob"]]


def test_first_mention_binds():
    prompt = "@bob, @anna, @bob"
    assert [prompt[a:b] for a, b in spans(prompt, ("anna", "bob"))] == ["@anna", "@bob"]
    assert spans(prompt, ("bob",)) == ((0, 4),)


def test_names_may_be_of_any_script_and_end_at_punctuation():
    text, places = text_of("@Æsa: @李雷!", ("李雷", "Æsa"))
    assert text == "Æsa: 李雷!" and places == (((5, 7),), ((0, 3),))


def test_a_longer_name_is_another_name():
    with pytest.raises(SpecError, match="@annabel"):
        text_of("@annabel waves", ("anna",))


def test_without_subjects_a_prompt_has_no_names():
    assert text_of("a sunny meadow", ()) == ("a sunny meadow", ())


@pytest.mark.parametrize(
    "prompt",
    [
        "  a  sunny\n meadow ",
        "it\u2019s &lt;b&gt; &amp;amp; \u00e2\u20ac\u0153quoted\u00e2\u20ac\x9d",
        "\u8272\u8c03\u8273\u4e3d\uff0c\u8fc7\u66dd\uff0c\u9759\u6001",
        "",
    ],
)
def test_text_is_read_as_upstream_reads_it(prompt: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert text_of(prompt, ())[0] == clean(prompt).strip() == prompt_clean(prompt)


def test_mentions_are_found_in_the_cleaned_text() -> None:
    text, places = text_of("  @anna \t greets&nbsp;@bob &#64;carl\n", ("anna", "bob"))
    assert text == "anna greets bob @carl"
    assert [text[a:b] for spans in places for a, b in spans] == ["anna", "bob"]


def test_reference_keeps_pixels_and_lays_glass_over_grey():
    image = Image.new("RGBA", (3, 2), (10, 20, 30, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    reference = Reference.from_image("anna", image)
    assert reference.rgb[:6] == bytes([PAD_GREY] * 3 + [10, 20, 30])
    assert reference.to_image().size == (3, 2)
    assert replace(reference, name="bob").digest() == reference.digest()
    assert replace(reference, width=2, height=3).digest() != reference.digest()


def test_a_picture_taken_sideways_is_turned_upright():
    image = Image.new("RGB", (4, 2), "red")
    image.getexif()[0x0112] = 6  # orientation: the camera was turned
    stored = BytesIO()
    image.save(stored, "JPEG", exif=image.getexif())
    reference = Reference.from_image("anna", Image.open(stored))
    assert (reference.width, reference.height) == (2, 4)


def test_reference_of_the_wrong_length_is_refused():
    with pytest.raises(SpecError) as caught:
        Reference("anna", 2, 2, b"123")
    assert caught.value.field == "subjects.anna"


def test_a_plain_wish_asks_for_one_video_and_no_judge():
    Wish().validate(0)
    assert (Wish().judged, Wish().most) == (False, 1)
    assert (Wish(n=4).judged, Wish(n=4).most) == (True, 4)
    assert (Wish(min_identity=0.4).judged, Wish(min_identity=0.4).most) == (True, 4)
    assert Wish(n=2, min_identity=0.4, max_reseeds=1).most == 3


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"n": 0}, "n"),
        ({"n": 5}, "n"),
        ({"n": True}, "n"),
        ({"n": 2.0}, "n"),
        ({"min_identity": 1.01}, "min_identity"),
        ({"min_identity": float("nan")}, "min_identity"),
        ({"min_identity": "0.5"}, "min_identity"),
        ({"max_reseeds": 4}, "max_reseeds"),
        ({"max_reseeds": -1}, "max_reseeds"),
    ],
)
def test_a_wish_out_of_bounds_is_named(given, field):
    with pytest.raises(SpecError) as caught:
        Wish(**given).validate(1)
    assert caught.value.field == field


@pytest.mark.parametrize("given", [{"n": 2}, {"min_identity": 0.1}])
def test_without_subjects_there_is_nothing_to_compare(given):
    Wish(**given).validate(1)
    with pytest.raises(SpecError, match="needs subjects") as caught:
        Wish(**given).validate(0)
    assert caught.value.field in given
