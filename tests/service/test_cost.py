"""The estimate against what the engine counts on its own modules."""

from dataclasses import replace

import pytest

from engine.plan import CARDS, plan
from engine.presets import PRESETS
from engine.spec import Guidance, Spec
from service.cost import FLOPS_PER_S, estimate


def spec_of(name: str, subjects: int = 0, **given: object) -> Spec:
    names = tuple("abcd"[:subjects])
    prompt = " ".join(f"@{one}" for one in names) or "a field"
    return Spec.of(PRESETS[name], prompt, names, **given)


@pytest.mark.parametrize(
    ("name", "subjects"),
    [("miniature", 0), ("miniature", 2), ("phantom-1.3b", 2), ("vace-1.3b", 1)],
)
def test_it_is_near_the_flops_that_the_engine_counts(name: str, subjects: int) -> None:
    guidance = replace(Guidance.assumed(PRESETS[name]), identity_scale=0.0)  # no forward's
    spec = spec_of(name, subjects, steps=4, num_frames=17, guidance=guidance)
    stages = plan(PRESETS[name], spec, CARDS["h100"]).stages
    counted = sum(stage.flops for stage in stages if stage.name.startswith("denoising"))
    # What is left out: modulation, embeddings, the subjects' keys and values, VACE's projections.
    low, high = (0.8, 1.05) if name == "miniature" else (0.9, 1.05)
    assert low < estimate(PRESETS[name], spec) * FLOPS_PER_S / counted < high


def test_it_grows_with_what_costs() -> None:
    preset = PRESETS["wan-1.3b"]
    usual = spec_of("wan-1.3b", 1, width=416, height=240)
    one = estimate(preset, usual)
    assert estimate(preset, replace(usual, steps=2 * usual.steps)) == pytest.approx(2 * one)
    assert estimate(preset, replace(usual, guidance=Guidance(scale=1.0))) == pytest.approx(one / 2)
    dual = replace(usual, guidance=Guidance("dual"))
    assert estimate(preset, dual) == pytest.approx(1.5 * one)
    pulled = replace(usual, guidance=Guidance(subject_scale=1.5))
    assert estimate(preset, pulled) == pytest.approx(1.5 * one)
    miniature = spec_of("miniature", 1)
    alone = replace(miniature, guidance=replace(miniature.guidance, identity_scale=0.0))
    moved = estimate(PRESETS["miniature"], miniature)
    assert moved == pytest.approx(2 * estimate(PRESETS["miniature"], alone))
    nobody = spec_of("miniature")
    assert nobody.guidance.identity_scale and estimate(PRESETS["miniature"], nobody) < moved
    # Four times the pixels: more than four times the work, for attention is quadratic.
    assert 4 * one < estimate(preset, replace(usual, width=832, height=480)) < 16 * one
