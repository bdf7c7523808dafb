"""Phantom against its own loop, written out here over diffusers' transformer; and what it refuses.

The loop and the pictures' preparation follow Phantom-video/Phantom `phantom_wan/subject2video.py`
and `generate.py`; neither is imported.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image, ImageOps

from engine import families, flow
from engine.encodings import EncodingsBatch, key, letterbox, stack
from engine.pipeline import Engine
from engine.presets import PRESETS
from engine.sample import sample
from engine.spec import Guidance, Spec
from tests.engine.conftest import (
    TOY,
    TOY_PRESET,
    diffusers_twin,
    picture,
    random_dit,
    random_encoders,
)

PLAIN = replace(TOY, subject_layers=0)
FIT = families.FITS["phantom"]


def request(num_subjects: int, seed: int, rows: int = 1) -> tuple[EncodingsBatch, EncodingsBatch]:
    """A batch and its negative prompt's, latents of 4 x 6."""
    generator = torch.Generator().manual_seed(seed)

    def batch(num: int) -> EncodingsBatch:
        return EncodingsBatch(
            text_BTM=torch.randn(rows, 10, 20, generator=generator),
            refs_BSCHW=torch.randn(rows, num, 16, 4, 6, generator=generator),
            tags_BSM=torch.zeros(rows, num, 20),
            subject_mask_BS=torch.ones(rows, num, dtype=torch.bool),
            vlm_BVM=torch.zeros(rows, 0, 0),
            vlm_mask_BV=torch.zeros(rows, 0, dtype=torch.bool),
        )

    return batch(num_subjects), batch(0)


@pytest.mark.parametrize("num", [1, 2, 4])
def test_six_steps_as_phantom_makes_them(num):
    """Three forwards a step, noise for F + N frames, references overwritten and at last dropped."""
    ours, frames = random_dit(PLAIN, seed=3), 3
    theirs = diffusers_twin(ours)
    batch, negative = request(num, seed=5)
    guidance, plan = Guidance("dual"), flow.schedule("unipc", 6, 5.0)
    found = families.conditions("phantom", ours, batch, negative, guidance)
    start = families.noise("phantom", [11], (16, frames, 4, 6), num)
    got = sample(ours.denoise, start, found, plan, guidance)

    solver = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    solver.set_timesteps(sigmas=np.linspace(float(np.float32(0.999)), 0, 7)[:-1])
    shape = (16, frames + num, 4, 6)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(11))[None]
    refs = batch.refs_BSCHW.transpose(1, 2)
    for timestep in solver.timesteps:
        with_refs = torch.cat([x[:, :, :-num], refs], dim=2)
        without = torch.cat([x[:, :, :-num], torch.zeros_like(refs)], dim=2)
        t_B = timestep.expand(1)
        full = theirs(with_refs, t_B, batch.text_BTM).sample
        image = theirs(with_refs, t_B, negative.text_BTM).sample
        empty = theirs(without, t_B, negative.text_BTM).sample
        v = empty + 5.0 * (image - empty) + 7.5 * (full - image)
        x = solver.step(v, timestep, x).prev_sample
    want = x[:, :, :-num]
    assert float((got - want).abs().max() / want.abs().max()) <= 5e-5


def test_without_subjects_phantom_is_plain_wan():
    dit, (batch, negative) = random_dit(PLAIN), request(0, seed=2)
    results = []
    for family in ("identity", "phantom"):
        dual = families.conditions(family, dit, batch, negative, Guidance("dual"))
        assert dual.image is None  # it would be the empty one again
        found = families.conditions(family, dit, batch, negative, Guidance())
        start = families.noise(family, [1], (16, 2, 4, 6), 0)
        plan = flow.schedule("euler", 2, 1.0)
        results.append(sample(dit.denoise, start, found, plan, Guidance()))
    assert torch.equal(*results)


def test_order_and_presence_of_references_count():
    dit, (batch, negative) = random_dit(PLAIN), request(2, seed=2)
    x, t_B = torch.randn(1, 16, 2, 4, 6), torch.tensor([0.5])
    other = replace(batch, refs_BSCHW=batch.refs_BSCHW.flip(1))
    made = [
        families.conditions("phantom", dit, one, negative, Guidance(scale=1.0)).full
        for one in (batch, other, request(0, seed=2)[0])
    ]
    first, flipped, none = (dit.denoise(x, t_B, condition) for condition in made)
    assert first.shape == x.shape
    assert not torch.allclose(first, flipped) and not torch.allclose(first, none)


def test_single_guidance_leaves_the_pictures_branch_out():
    dit, (batch, negative) = random_dit(PLAIN), request(1, seed=2)
    single = families.conditions("phantom", dit, batch, negative, Guidance())
    assert single.image is None and single.empty is not None
    assert not single.empty.tail_BCFHW.any() and single.full.tail_BCFHW.any()
    off = families.conditions("phantom", dit, batch, negative, Guidance(scale=1.0))
    assert off.empty is None and off.image is None


@pytest.mark.parametrize("family", ["identity", "phantom"])
def test_the_subjects_own_pull_asks_what_the_prompt_alone_says(family):
    """As a request with the same words and no pictures does; Phantom's sees zeros in their place.
    It is asked only where it has a weight."""
    config = TOY if family == "identity" else PLAIN
    dit, (batch, negative) = random_dit(config), request(2, seed=2)
    pulled = families.conditions(family, dit, batch, negative, Guidance(subject_scale=1.5))
    x, t_B = torch.randn(1, 16, 2, 4, 6), torch.tensor([0.5])
    words = dit.denoise(x, t_B, pulled.text)
    if family == "identity":
        want = dit.condition(batch.text_BTM)
    else:
        want = pulled.full._replace(tail_BCFHW=torch.zeros_like(pulled.full.tail_BCFHW))
    assert torch.equal(words, dit.denoise(x, t_B, want))
    assert not torch.equal(words, dit.denoise(x, t_B, pulled.full)) and pulled.image is None
    assert families.conditions(family, dit, batch, negative, Guidance()).text is None
    nobody, negative = request(0, seed=2)
    given = Guidance(subject_scale=1.5)
    assert families.conditions(family, dit, nobody, negative, given).text is None


def test_a_batch_has_equally_many_subjects():
    dit, (batch, negative) = random_dit(PLAIN), request(2, seed=2, rows=2)
    ragged = replace(batch, subject_mask_BS=torch.tensor([[True, True], [True, False]]))
    with pytest.raises(ValueError, match="equally many"):
        families.conditions("phantom", dit, ragged, negative, Guidance())


@pytest.mark.parametrize("size", [(40, 40), (333, 77), (50, 201), (832, 480), (1, 900)])
def test_pictures_are_prepared_as_phantom_does(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    width, height = 96, 64
    ratio = image.width / image.height
    if ratio > width / height:
        fitted = (width, int(width / ratio))
    else:
        fitted = (int(height * ratio), height)
    if min(fitted) == 0:  # upstream fails here
        assert letterbox(image, width, height, FIT).size == (width, height)
        return
    small = image.resize(fitted, Image.Resampling.LANCZOS)
    left, top = (width - fitted[0]) // 2, (height - fitted[1]) // 2
    borders = (left, top, width - fitted[0] - left, height - fitted[1] - top)
    want = ImageOps.expand(small, borders, fill=(255, 255, 255))
    assert np.array_equal(np.array(letterbox(image, width, height, FIT)), np.array(want))


def test_how_pictures_are_prepared_is_part_of_the_key():
    keys = {key("w", "anna", (), [picture("anna")], (64, 64), f) for f in families.FITS.values()}
    assert len(keys) == len(families.FITS)


@pytest.fixture(scope="module")
def phantom() -> Engine:
    """A whole engine under a small preset of the family."""
    dit = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False)
    defaults = replace(TOY_PRESET.defaults, guidance_mode="dual", solver="unipc", shift=5.0)
    preset = replace(
        TOY_PRESET, family="phantom", dit=dit, defaults=defaults,
        reference_width=0, reference_height=0,
    )  # fmt: skip
    return Engine(random_dit(dit), replace(random_encoders(), vlm=None), preset, "phantom-0")


def test_a_video_of_two_subjects_end_to_end(phantom: Engine):
    spec = Spec.of(phantom.preset, "@anna waves to @bob", ("anna", "bob"), seed=7)
    assert spec.guidance.mode == "dual"
    cast = [picture("anna"), picture("bob", (20, 40, 220))]
    video = phantom.generate(spec, cast)
    assert video.frames.shape == (5, 32, 48, 3)
    assert np.array_equal(video.frames, phantom.generate(spec, cast).frames)
    exchanged = [replace(cast[0], name="bob"), replace(cast[1], name="anna")]
    assert not np.array_equal(video.frames, phantom.generate(spec, exchanged).frames)
    encoded = phantom.encode(spec, cast)[0]
    assert stack([encoded]).refs_BSCHW.shape == (1, 2, 16, 8, 12)  # of the video's own size


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.family == "phantom"])
def test_presets_of_the_family_have_plain_transformers(name):
    preset = PRESETS[name]
    assert preset.dit.subject_layers == 0 and not preset.dit.use_vlm
    assert preset.defaults.guidance_mode == "dual" and preset.limits.max_subjects == 4
    assert preset.reference_size(832, 480) == (832, 480)
