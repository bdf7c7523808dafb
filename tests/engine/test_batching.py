"""Batching: who goes together, in how many forwards, and that company changes nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import batching, flow
from engine.encodings import stack
from engine.errors import SpecError
from engine.presets import MINIATURE, PHANTOM_1_3B, VACE_1_3B, WAN_1_3B
from engine.spec import Guidance, Spec
from engine.vace import VaceDiT
from tests.engine.conftest import (
    TOY,
    TOY_PRESET,
    picture,
    random_dit,
    random_engine,
    random_inputs,
)

SHAPE = (16, 2, 8, 12)  # of SPEC's latents: 48 tokens
SPEC = Spec.of(TOY_PRESET, "@anna spins", ("anna",), seed=1)
CAST = [picture("anna")]


def watched_engine(knee: int):
    """An engine with this knee, and the rows of each of its forwards as they come."""
    engine, rows = random_engine(), []
    engine.preset = replace(TOY_PRESET, knee=knee)
    engine.dit.head.register_forward_hook(lambda _, given, out: rows.append(len(out)))
    return engine, rows


def sampled(engine, num: int, **options: object) -> torch.Tensor:
    full, negative = engine.encode(SPEC, CAST)
    plan = flow.schedule("euler", 2, 1.0)
    given = stack([full] * num), stack([negative]), list(range(num)), SHAPE, plan, Guidance()
    return engine.sample(*given, **options)


@pytest.mark.parametrize(
    ("preset", "tokens"),
    [(MINIATURE, 480), (WAN_1_3B, 32760), (PHANTOM_1_3B, 35880), (VACE_1_3B, 35880)],
    ids=lambda value: getattr(value, "name", value),
)
def test_tokens_are_those_of_a_forward(preset, tokens):
    usual = preset.defaults
    shape = preset.latent_shape(usual.width, usual.height, usual.num_frames)
    assert batching.tokens(preset, shape, 2) == tokens


@pytest.mark.parametrize(("knee", "room"), [(1, 1), (48, 1), (95, 1), (96, 2), (480, 10)])
def test_room_ends_at_the_knee(knee, room):
    preset = replace(TOY_PRESET, knee=knee)
    assert batching.room(preset, SHAPE, 1) == room
    assert batching.room(preset, SHAPE, 1, "fast") == 1


def test_groups_are_of_requests_alike_and_no_larger_than_there_is_room():
    preset = replace(TOY_PRESET, knee=2 * 48)
    other = {
        "steps": replace(SPEC, steps=4),
        "guidance": replace(SPEC, guidance=Guidance("dual")),
        "names": replace(SPEC, prompt="a meadow", names=()),
        "size": replace(SPEC, width=32, height=48),
        "solver": replace(SPEC, solver="unipc"),
    }
    alike = [replace(SPEC, seed=9), replace(SPEC, prompt="@anna waits", fps=3)]
    specs = [SPEC, *other.values(), *alike]
    assert batching.groups(preset, specs) == [[0, 6], [1], [2], [3], [4], [5], [7]]
    fast = [replace(SPEC, tier="fast")] * 2
    assert batching.groups(preset, [SPEC, *fast, SPEC]) == [[0, 3], [1], [2]]
    assert batching.groups(preset, []) == []


def test_a_large_batch_goes_in_even_parts():
    engine, rows = watched_engine(knee=4 * 48)
    latents = sampled(engine, 6)
    assert rows == [3] * 2 * 2 * 2  # two parts, two forwards of guidance, two steps
    free, whole = watched_engine(knee=6 * 48)
    torch.testing.assert_close(latents, sampled(free, 6), rtol=1e-4, atol=1e-4)
    assert whole == [6] * 4


def test_a_batch_in_parts_is_told_and_resumed_as_a_whole():
    engine, rows = watched_engine(knee=48)
    saved = []
    latents = sampled(engine, 3, on_step=saved.append)
    assert [step.x.shape for step in saved] == [(3, *SHAPE)] * 2
    assert torch.equal(sampled(engine, 3, resume=saved[0]), latents)
    assert rows == [1] * 18


@pytest.mark.parametrize("switch", [{}, {"layout": "concat"}, {"stream_time": True}], ids=str)
def test_parts_carry_their_own_conditions(switch):
    model, given = random_dit(replace(TOY, **switch)), random_inputs(batch=3)
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    condition = model.condition(given["text"], subjects)
    want = model.denoise(given["x"], given["t"], condition)
    got = batching.limited(model.denoise, 1)(given["x"], given["t"], condition)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_parts_carry_their_own_contexts():
    model = VaceDiT(replace(TOY, subject_layers=0, vace_layers=(0, 2), vace_in_dim=36)).eval()
    given, context = random_inputs(batch=2), torch.randn(2, 36, 3, 4, 6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    condition = model.condition(given["text"])
    condition = condition._replace(context=model.context(context, given["text"]))
    want = model.denoise(given["x"], given["t"], condition)
    got = batching.limited(model.denoise, 1)(given["x"], given["t"], condition)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_part_is_the_same_object_at_every_step():
    model, given, seen = random_dit(), random_inputs(batch=2), []
    condition = model.condition(given["text"], given["subjects"])
    velocity = batching.limited(lambda x, t, part: seen.append(part) or x, 1)
    for _ in range(2):
        assert torch.equal(velocity(given["x"], given["t"], condition), given["x"])
    assert seen[0] is seen[2] and seen[1] is seen[3] and seen[0] is not seen[1]


def test_many_are_what_each_would_be_alone():
    engine, rows = watched_engine(knee=2 * 48)
    specs = [
        SPEC,
        replace(SPEC, steps=2),
        replace(SPEC, seed=5, prompt="@anna waits", negative_prompt="rain"),
        replace(SPEC, seed=6, fps=4),
    ]
    films = list(engine.generate_many(specs, [CAST] * 4))
    assert sorted(rows) == sorted([2] * 6 + [1] * 4 + [1] * 6)
    assert [film.fps for film in films] == [8, 8, 8, 4]
    assert [film.made.asked for film in films] == [6, 4, 6, 6]
    for film, spec in zip(films, specs, strict=True):
        alone = engine.generate(spec, CAST).frames.astype(int)
        assert np.abs(film.frames - alone).max() <= 1
    assert not np.array_equal(films[0].frames, films[2].frames)


def test_many_lossy_ones_decide_alone():
    engine, _ = watched_engine(knee=480)
    specs = [replace(SPEC, tier="fast", seed=seed, steps=6) for seed in (1, 2)]
    for film, spec in zip(engine.generate_many(specs, [CAST] * 2), specs, strict=True):
        alone = engine.generate(spec, CAST)
        assert np.array_equal(film.frames, alone.frames) and film.made == alone.made


def test_none_is_made_where_one_cannot_be():
    engine, rows = watched_engine(knee=480)
    with pytest.raises(SpecError):
        engine.generate_many([SPEC, replace(SPEC, steps=0)], [CAST, CAST])
    with pytest.raises(SpecError, match="one picture for each name"):
        engine.generate_many([SPEC, SPEC], [CAST, []])
    with pytest.raises(ValueError, match="shorter"):
        engine.generate_many([SPEC, SPEC], [CAST])
    assert rows == []


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_pullback_is_the_gradient_of_the_velocity(rows):
    """In as many parts as there is room for; each row by its own condition."""
    dit, given = random_dit(TOY).requires_grad_(False), random_inputs(batch=3)
    condition = dit.condition(given["text"], given["subjects"])
    cotangent = torch.randn_like(given["x"])
    sizes = []
    dit.head.register_forward_hook(lambda _, told, out: sizes.append(len(out)))
    with torch.no_grad():
        pull = batching.pullback(dit, torch.device("cpu"), condition, rows)
        pulled = pull(given["x"], given["t"], cotangent)
    assert max(sizes) == min(rows, 3) and sum(sizes) == 3
    with torch.enable_grad():
        x = given["x"].clone().requires_grad_()
        (wanted,) = torch.autograd.grad(dit.denoise(x, given["t"], condition), x, cotangent)
    torch.testing.assert_close(pulled, wanted, rtol=1e-4, atol=1e-5)


def test_there_is_no_pullback_where_blocks_lie_elsewhere():
    """As under `offload=group`: what stays on the device is not enough."""
    dit = random_dit(TOY)
    condition = dit.condition(random_inputs()["text"], None)
    assert batching.pullback(dit, torch.device("cpu"), condition, 1) is not None
    dit.blocks.to("meta")
    assert batching.pullback(dit, torch.device("cpu"), condition, 1) is None
