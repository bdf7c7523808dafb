"""VACE against diffusers' transformer and its whole pipeline, and inside an engine of ours."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from PIL import Image

from engine import families, flow, upstream
from engine.edit import Edit
from engine.encodings import EncodingsBatch, letterbox, stack
from engine.errors import CheckpointError
from engine.folders import Manifest
from engine.pipeline import Engine, Progress
from engine.presets import PRESETS, WAN_1_3B
from engine.sample import sample
from engine.spec import Guidance, Spec
from engine.vace import VaceDiT, build_dit, cell_masks, context_latents
from engine.vae import VAE, to_pixels
from engine.video import Video
from tests.engine.conftest import TOY, TOY_PRESET, picture, random_dit, random_encoders

PLAIN = replace(TOY, subject_layers=0, text_len=512)
CONFIG = replace(PLAIN, vace_layers=(0, 2), vace_in_dim=2 * 16 + 8 * 8)


def random_vace(config=CONFIG, seed: int = 0) -> VaceDiT:
    torch.manual_seed(seed)
    model = build_dit(config)
    assert isinstance(model, VaceDiT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def twin(ours: VaceDiT) -> WanVACETransformer3DModel:
    config = ours.config
    theirs = WanVACETransformer3DModel(
        **upstream.diffusers_arguments(config),
        vace_layers=list(config.vace_layers),
        vace_in_channels=config.vace_in_dim,
    ).eval()
    renamed = {upstream.diffusers_name(k): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    return theirs


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize("shape", [(1, 16, 1, 2, 2), (2, 16, 3, 6, 10)])
@pytest.mark.parametrize("length", [20, 77, 512])
@pytest.mark.parametrize("t", [0.999, 0.5, 0.003])
def test_one_forward(shape, t, length):
    ours = random_vace(seed=3)
    torch.manual_seed(4)
    x, text = torch.randn(shape), torch.randn(shape[0], 512, 20)
    text[:, length:] = 0  # the pads, which are attended to
    context = torch.randn(shape[0], 96, *shape[2:])
    t_B = torch.full((shape[0],), t)
    condition = ours.condition(text)._replace(context=ours.context(context, text))
    want = twin(ours)(x, t_B * 1000, text, control_hidden_states=context).sample
    assert error(ours.denoise(x, t_B, condition), want) <= 2e-5
    without = ours.denoise(x, t_B, ours.condition(text))
    assert error(without, want) > 1e-2


def test_without_a_context_it_is_plain_wan():
    ours, plain = random_vace(), random_dit(PLAIN)
    own = ours.state_dict()
    plain.load_state_dict({name: own[name] for name in plain.state_dict()})
    x, t_B, text = torch.randn(1, 16, 2, 4, 4), torch.tensor([0.5]), torch.randn(1, 512, 20)
    assert torch.equal(ours(x, t_B, text), plain(x, t_B, text))
    fresh = build_dit(CONFIG).eval()
    condition = fresh.condition(text)
    hinted = condition._replace(context=fresh.context(torch.randn(1, 96, 2, 4, 4), text))
    assert torch.equal(fresh.denoise(x, t_B, hinted), fresh.denoise(x, t_B, condition))


@pytest.fixture(scope="module")
def vae() -> VAE:
    """Wan's VAE in small, eight pixels a cell, with statistics of its own."""
    torch.manual_seed(1)
    mean, std = torch.randn(16), torch.rand(16) + 0.5
    config = replace(WAN_1_3B.vae, base_dim=8)
    numbers = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    model = AutoencoderKLWan(**numbers, latents_mean=mean.tolist(), latents_std=std.tolist())
    return VAE(model, mean, std, config)


@pytest.mark.parametrize("masked", [False, True], ids=["references", "and a masked video"])
def test_the_whole_pipeline(vae, masked):
    """Context, noise, guidance and steps; only the references' rounding and order are ours."""
    ours = random_vace(seed=6)
    rng = np.random.default_rng(0)
    width, height, num = 64, 48, 9
    reference = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    frames = rng.integers(0, 255, (num, height, width, 3), dtype=np.uint8)
    mask = rng.random((num, height, width)) > 0.5
    given = {}
    if masked:
        given["video"] = [Image.fromarray(frame) for frame in frames]
        given["mask"] = [Image.fromarray(m.astype(np.uint8) * 255) for m in mask]
    torch.manual_seed(5)
    text, negative = torch.randn(2, 1, 512, 20).unbind(0)
    start = families.noise("vace", [11], (16, 3, 6, 8), 1)
    assert start.shape == (1, 16, 4, 6, 8)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=16.0
    )
    pipeline = WanVACEPipeline(
        tokenizer=None, text_encoder=None, vae=vae.model, scheduler=scheduler,
        transformer=twin(ours),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    want = pipeline(
        prompt_embeds=text, negative_prompt_embeds=negative, reference_images=[reference],
        height=height, width=width, num_frames=num, num_inference_steps=6, guidance_scale=5.0,
        latents=start, output_type="latent", **given,
    ).frames  # fmt: skip

    fitted = letterbox(reference, width, height, families.FITS["vace"])
    refs = vae.encode(to_pixels(torch.from_numpy(np.array(fitted))[None, None]))[:, :, 0]
    known = Edit(Video(frames, 8), 1.0, mask).pixels() if masked else (None, None)
    context = context_latents(vae, refs, *known, (num, height, width))[None]
    batch, nobody = encoded(text, refs[None]), encoded(negative, refs[None, :0])
    guidance = Guidance(scale=5.0)
    found = families.conditions("vace", ours, batch, nobody, guidance, context)
    # The scheduler's own table: diffusers' differs from Wan's in the third digit.
    scheduler.set_timesteps(6)
    plan = flow.Schedule(scheduler.sigmas.double(), scheduler.timesteps.double() / 1000, "unipc")
    assert error(sample(ours.denoise, start, found, plan, guidance), want) <= 5e-5


@pytest.mark.parametrize("size", [(40, 40), (333, 77), (50, 201), (1176, 933), (832, 480)])
def test_pictures_are_prepared_as_vace_does(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    width, height = 832, 480
    scale = min(height / image.height, width / image.width)
    tall, wide = int(image.height * scale), int(image.width * scale)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    small = torch.nn.functional.interpolate(pixels, (tall, wide), mode="bilinear")
    canvas = torch.full((3, height, width), 255.0)
    top, left = (height - tall) // 2, (width - wide) // 2
    canvas[:, top : top + tall, left : left + wide] = small[0]
    got = np.array(letterbox(image, width, height, families.FITS["vace"]))
    assert np.abs(got - canvas.permute(1, 2, 0).numpy()).max() <= 0.5  # rounded to 8 bits


def encoded(text: torch.Tensor, refs: torch.Tensor) -> EncodingsBatch:
    num = refs.shape[1]
    return EncodingsBatch(
        text_BTM=text,
        refs_BSCHW=refs,
        tags_BSM=torch.zeros(1, num, 20),
        subject_mask_BS=torch.ones(1, num, dtype=torch.bool),
        vlm_BVM=torch.zeros(1, 0, 0),
        vlm_mask_BV=torch.zeros(1, 0, dtype=torch.bool),
    )


def test_context_has_references_in_front_in_their_order(vae):
    refs = torch.randn(2, 16, 4, 6)
    context = context_latents(vae, refs, None, None, (5, 32, 48))
    assert context.shape == (96, 4, 4, 6)
    assert torch.equal(context[:16, :2], refs.transpose(0, 1))
    assert not context[16:, :2].any() and context[32:, 2:].eq(1).all()


def test_masks_keep_every_pixel_of_a_cell():
    mask = torch.zeros(5, 16, 24)
    mask[:, 9, 18] = 1  # row 1 of cell row 1, column 2 of cell column 2
    cells = cell_masks(mask, 2, 8)
    assert cells.shape == (64, 2, 2, 3)
    assert cells.nonzero().tolist() == [[10, 0, 1, 2], [10, 1, 1, 2]]


@pytest.fixture(scope="module")
def vace() -> Engine:
    dit = replace(
        TOY_PRESET.dit, subject_layers=0, use_vlm=False, vace_layers=(0, 2),
        vace_in_dim=2 * 16 + 4 * 4,
    )  # fmt: skip
    preset = replace(
        TOY_PRESET, family="vace", dit=dit, reference_width=0, reference_height=0
    )
    encoders = replace(random_encoders(), vlm=None)
    return Engine(random_vace(dit).requires_grad_(False), encoders, preset, "vace-0")


def test_a_video_of_two_subjects_end_to_end(vace: Engine):
    spec = Spec.of(vace.preset, "@anna waves to @bob", ("anna", "bob"), seed=7, steps=4)
    cast = [picture("anna"), picture("bob", (20, 40, 220))]
    told: list[Progress] = []
    video = vace.generate(spec, cast, told.append)
    assert video.frames.shape == (5, 32, 48, 3)
    assert sum(progress.preview is not None for progress in told) == 3
    assert np.array_equal(video.frames, vace.generate(spec, cast).frames)
    exchanged = [replace(cast[0], name="bob"), replace(cast[1], name="anna")]
    assert not np.array_equal(video.frames, vace.generate(spec, exchanged).frames)
    nobody = Spec.of(vace.preset, "a meadow", seed=7)
    assert vace.generate(nobody, []).frames.shape == (5, 32, 48, 3)


def test_a_masked_edit_keeps_the_rest(vace: Engine):
    spec = Spec.of(vace.preset, "@anna waves", ("anna",), seed=7, steps=4)
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
    mask = np.zeros((32, 48), bool)
    mask[:, 24:] = True
    edit = Edit(Video(frames, 8), 1.0, mask)
    cast = [picture("anna")]
    encoded = vace.encode(spec, cast)
    source = edit.source(vace.encoders.vae, spec.steps)
    got = vace.sample(
        *(stack([part]) for part in encoded), [7], (16, 2, 8, 12), flow.schedule("unipc", 4, 16.0),
        Guidance(), source=source, context_BCFHW=vace.context(spec, [encoded], edit),
    )  # fmt: skip
    known = source.x0_BCFHW
    torch.testing.assert_close(got[..., :6], known[..., :6], rtol=1e-4, atol=1e-4)
    assert (got[..., 6:] - known[..., 6:]).abs().mean() > 0.1
    made = vace.generate(spec, cast, edit=edit).frames
    elsewhere = replace(edit, mask=~mask)
    assert not np.array_equal(vace.generate(spec, cast, edit=elsewhere).frames, made)


@pytest.mark.parametrize("name", [n for n, p in PRESETS.items() if p.family == "vace"])
def test_presets_of_the_family_are_upstreams(name):
    preset = PRESETS[name]
    assert len(preset.dit.vace_layers) == {"vace-1.3b": 15, "vace-14b": 8}[name]
    assert preset.dit.vace_in_dim == 96 and preset.defaults.shift == 16
    with torch.device("meta"):
        names = build_dit(preset.dit).state_dict()
    assert names["vace_patch_embedding.weight"].shape == (preset.dit.dim, 96, 1, 2, 2)
    assert "vace_blocks.0.before_proj.weight" in names
    assert "vace_blocks.1.before_proj.weight" not in names


def test_files_in_diffusers_layout_are_read():
    ours = random_vace()
    own = ours.state_dict()
    back = upstream.original_names(twin(ours).state_dict(), own)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], value) for name, value in own.items())


@pytest.mark.parametrize(
    ("preset", "dit", "message"),
    [
        ("vace-1.3b", {"vace_layers": [1, 2]}, "rise from 0"),
        ("vace-1.3b", {"vace_layers": [0, 4, 2]}, "rise from 0"),
        ("vace-1.3b", {"vace_layers": [0, 99]}, "rise from 0"),
        ("vace-1.3b", {"vace_layers": []}, "family vace"),
        ("vace-1.3b", {"vace_in_dim": 3}, "must be 96"),
    ],
)
def test_a_manifest_with_impossible_context_blocks_is_refused(preset, dit, message):
    with pytest.raises(CheckpointError, match=message):
        Manifest(preset, configs={"dit": dit}).resolve()
