"""Editing: what is kept is kept, what is masked changes, and both with every solver and family."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import flow
from engine.edit import Edit, entry, fitted, latent_mask, length
from engine.encodings import stack
from engine.errors import SpecError
from engine.pipeline import Engine
from engine.sample import Step
from engine.spec import Guidance, Spec
from engine.vae import to_pixels
from engine.video import Video
from tests.engine.conftest import TOY_PRESET, picture, random_dit, random_encoders

SPEC = Spec.of(TOY_PRESET, "@anna waves", ("anna",), seed=7, steps=4)
CAST = [picture("anna")]
FRAMES = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
VIDEO = Video(FRAMES, 8)


def right_half() -> np.ndarray:
    mask = np.zeros((32, 48), bool)
    mask[:, 24:] = True
    return mask


@pytest.mark.parametrize(
    ("strength", "steps", "first"),
    [(1.0, 10, 0), (0.6, 10, 4), (0.5, 3, 2), (0.7, 10, 3), (0.01, 10, 9), (0.6, 1, 0)],
)
def test_a_run_enters_as_late_as_its_strength_says(strength, steps, first):
    assert entry(strength, steps) == first


def test_mask_covers_every_cell_that_it_touches(engine):
    mask = np.zeros((5, 32, 48), bool)
    mask[3, 5, 13] = True  # frames 1 to 4 are latent frame 1; cells are 4 px
    cells = latent_mask(mask, 5, engine.encoders.vae)
    assert cells.shape == (1, 1, 2, 8, 12)
    assert cells[0, 0].nonzero().tolist() == [[1, 1, 3]]
    still = latent_mask(mask[3], 5, engine.encoders.vae)
    assert still[0, 0].nonzero().tolist() == [[0, 1, 3], [1, 1, 3]]


@pytest.fixture(scope="module", params=["identity", "phantom"])
def families(request) -> Engine:
    if request.param == "identity":
        dit = TOY_PRESET.dit
        preset = TOY_PRESET
    else:
        dit = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False)
        preset = replace(
            TOY_PRESET, family="phantom", dit=dit, reference_width=0, reference_height=0
        )
    return Engine(random_dit(dit), random_encoders(), preset, request.param)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_outside_of_the_mask_the_latents_arrive_unchanged(families, solver):
    spec = replace(SPEC, solver=solver)
    source = Edit(VIDEO, 0.8, right_half()).source(families.encoders.vae, spec.steps)
    batch, negative = (stack([e]) for e in families.encode(spec, CAST))
    plan = flow.schedule(solver, spec.steps, 3.0)
    shape = (16, 2, 8, 12)
    got = families.sample(batch, negative, [7], shape, plan, Guidance(), source=source)
    torch.testing.assert_close(got[..., :6], source.x0_BCFHW[..., :6], rtol=1e-4, atol=1e-4)
    assert (got[..., 6:] - source.x0_BCFHW[..., 6:]).abs().mean() > 0.1


def test_the_less_strength_the_more_stays(engine):
    kept = engine.decode(engine.encoders.vae.encode(to_pixels(torch.from_numpy(FRAMES)[None])))
    far = []
    for strength in (0.25, 0.5, 1.0):
        made = engine.generate(SPEC, CAST, edit=Edit(VIDEO, strength)).frames
        far.append(np.abs(made.astype(float) - kept[0].numpy()).mean())
    assert far[0] < far[1] < far[2]


def test_same_edit_same_bytes_and_another_prompt_another_video(engine):
    edit = Edit(VIDEO, 0.75)
    one, two = (engine.generate(SPEC, CAST, edit=edit).frames for _ in range(2))
    assert np.array_equal(one, two)
    other = replace(SPEC, prompt="@anna sleeps")
    assert not np.array_equal(engine.generate(other, CAST, edit=edit).frames, one)
    assert not np.array_equal(engine.generate(SPEC, CAST).frames, one)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_an_edit_goes_on_from_any_step_to_the_same_bits(engine, solver):
    source = Edit(VIDEO, 0.75, right_half()).source(engine.encoders.vae, 6)
    batch, negative = (stack([e]) for e in engine.encode(SPEC, CAST))
    steps: list[Step] = []
    fixed = (batch, negative, [7], (16, 2, 8, 12), flow.schedule(solver, 6, 1.0), Guidance())
    whole = engine.sample(*fixed, steps.append, source=source)
    assert [step.done for step in steps] == [3, 4, 5, 6]
    assert torch.equal(engine.sample(*fixed, resume=steps[1], source=source), whole)


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (Edit(VIDEO, 0.0), "strength"),
        (Edit(VIDEO, 1.5), "strength"),
        (Edit(VIDEO, float("nan")), "strength"),
        (Edit(Video(FRAMES[:1], 8)), "video"),
        (Edit(Video(FRAMES[:, :16], 8)), "video"),
        (Edit(VIDEO, mask=np.ones((4, 4), bool)), "mask"),
        (Edit(VIDEO, mask=np.zeros((32, 48), bool)), "mask"),
    ],
)
def test_what_does_not_fit_is_named(engine, edit, field):
    with pytest.raises(SpecError) as caught:
        engine.generate(SPEC, CAST, edit=edit)
    assert caught.value.field == field


def test_a_video_is_cut_and_resized_to_what_the_model_makes():
    long = Video(np.zeros((40, 64, 96, 3), np.uint8), 8)
    assert length(long, TOY_PRESET.limits) == 33
    assert length(Video(long.frames[:8], 8), TOY_PRESET.limits) == 5
    assert fitted(long, 48, 32, 9).frames.shape == (9, 32, 48, 3)
    with pytest.raises(SpecError, match="at least 5"):
        length(Video(long.frames[:4], 8), TOY_PRESET.limits)
    with pytest.raises(SpecError, match="41 are asked"):
        fitted(long, 48, 32, 41)
