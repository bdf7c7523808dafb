"""The engine end to end, on random weights: exactness, progress, cancelling, no leaks."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine import batching, flow
from engine.encodings import stack
from engine.errors import BackendError, Cancelled, SpecError
from engine.families import noise
from engine.pipeline import Progress
from engine.presets import ReaderConfig
from engine.reader import Readers
from engine.sample import Step
from engine.spec import Guidance, Spec
from engine.vae import to_frames
from tests.engine.conftest import TOY_PRESET, Spots, picture, random_engine

SPEC = Spec.of(TOY_PRESET, "@anna waves to @bob", ("anna", "bob"), seed=7)
CAST = [picture("anna"), picture("bob", (20, 40, 220))]


@pytest.fixture
def moving_engine():
    """One that brings readers, random ones, who find somebody in the middle of every frame."""
    torch.manual_seed(0)
    engine = random_engine()
    limits = replace(TOY_PRESET.limits, max_identity_scale=1.0)
    engine.preset = engine.encoder.preset = replace(TOY_PRESET, limits=limits)
    readers = Readers(16, ReaderConfig((3, 4), (8, 16), 8, (8, 16))).eval().requires_grad_(False)
    readers.where = Spots([(6, 4)])
    engine.readers = readers
    return engine


def test_same_seed_same_bytes_and_another_seed_another_video(engine):
    one, two = engine.generate(SPEC, CAST), engine.generate(SPEC, CAST)
    assert one.frames.shape == (5, 32, 48, 3) and one.fps == 8
    assert one.mp4() == two.mp4()
    other = engine.generate(replace(SPEC, seed=8), CAST)
    assert not np.array_equal(one.frames, other.frames)


def test_a_fresh_engine_gives_the_same_bytes(engine):
    """Nothing of an earlier request is kept: not even by the cache's being warm."""
    warm = engine.generate(SPEC, CAST)
    engine.generate(replace(SPEC, prompt="@bob and @anna, @bob"), CAST[::-1])
    assert np.array_equal(engine.generate(SPEC, CAST).frames, warm.frames)
    assert np.array_equal(random_engine().generate(SPEC, CAST).frames, warm.frames)


def test_pictures_bind_by_name_whatever_their_order(engine):
    assert np.array_equal(
        engine.generate(SPEC, CAST).frames, engine.generate(SPEC, CAST[::-1]).frames
    )
    swapped = [replace(CAST[0], name="bob"), replace(CAST[1], name="anna")]
    assert not np.array_equal(
        engine.generate(SPEC, CAST).frames, engine.generate(SPEC, swapped).frames
    )


@pytest.mark.parametrize("cast", [[], CAST[:1], [*CAST, picture("carl")], [CAST[0], CAST[0]]])
def test_names_and_pictures_must_match(engine, cast):
    with pytest.raises(SpecError) as caught:
        engine.generate(SPEC, cast)
    assert caught.value.field == "subjects"


def test_tiles_that_are_too_small_are_told_before_any_work():
    engine, told = random_engine(), []
    engine.encoders.vae.max_cells = 1
    with pytest.raises(BackendError, match="tile=1: .* give it"):
        engine.generate(SPEC, CAST, on_progress=told.append)
    assert told == []


def test_two_edits_at_once_are_each_themselves(engine):
    """The encoder of diffusers' VAE keeps what it saw of a clip on itself."""
    clips = [torch.rand(1, 3, 5, 32, 48) * 2 - 1 for _ in range(4)]
    alone = [engine.encoders.vae.encode(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engine.encoders.vae.encode, clips))
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_without_subjects_it_is_text_to_video(engine):
    spec = Spec.of(TOY_PRESET, "a sunny meadow", seed=7)
    assert engine.generate(spec, []).frames.shape == (5, 32, 48, 3)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize("mode", ["single", "dual"])
def test_solvers_and_guidance(engine, solver, mode):
    spec = replace(SPEC, solver=solver, guidance=Guidance(mode=mode))
    assert engine.generate(spec, CAST).frames.std() > 0


def test_progress_tells_every_stage_and_step_with_previews(engine):
    told: list[Progress] = []
    engine.generate(replace(SPEC, steps=4), CAST, told.append)
    assert [(p.stage, p.step) for p in told] == [
        ("encode", 0),
        ("denoise", 0),
        ("denoise", 1),
        ("denoise", 2),
        ("denoise", 3),
        ("denoise", 4),
        ("decode", 0),
        ("decode", 1),
        ("decode", 5),
    ]
    assert [p.num_steps for p in told] == 6 * [4] + 3 * [SPEC.num_frames]
    assert sum(p.preview is not None for p in told) == 3
    assert told[2].preview.startswith(b"\xff\xd8")


def test_decoding_stops_between_frames(engine):
    told: list[int] = []

    def stop(progress: Progress) -> None:
        if progress.stage == "decode":
            told.append(progress.step)
            if progress.step == 1:
                raise Cancelled

    with pytest.raises(Cancelled):
        engine.generate(replace(SPEC, steps=1), CAST, stop)
    assert told == [0, 1]


def test_frames_come_as_they_are_decoded():
    engine = random_engine()
    z = torch.randn(2, 16, 3, 4, 6)
    chunks = list(engine.stream(z))
    assert [chunk.shape for chunk in chunks] == [(2, t, 16, 24, 3) for t in (1, 4, 4)]
    assert all(chunk.dtype == torch.uint8 for chunk in chunks)
    assert torch.equal(torch.cat(chunks, dim=1), to_frames(engine.encoders.vae.decode(z)))


def test_watching_changes_nothing(engine):
    watched = engine.generate(SPEC, CAST, lambda progress: None)
    assert np.array_equal(watched.frames, engine.generate(SPEC, CAST).frames)


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_cancels_within_one_step(engine, stop_at):
    steps: list[int] = []
    handle = engine.dit.head.register_forward_hook(lambda *_: steps.append(1))

    def stop(progress: Progress) -> None:
        if progress.stage == "denoise" and progress.step == stop_at:
            raise Cancelled

    with pytest.raises(Cancelled):
        engine.generate(SPEC, CAST, stop)
    handle.remove()
    assert len(steps) == 2 * stop_at


def test_without_guidance_the_negative_prompt_costs_nothing(engine):
    """Off: one kind of forward, and the frames of the full condition alone."""
    off = Guidance(scale=1.0)
    batch, negative = (stack([part]) for part in engine.encode(SPEC, CAST))
    assert off.is_off and not Guidance(scale=1.5).is_off and not Guidance("dual", 1.0).is_off
    conditions = engine.conditions(batch, negative, off)
    assert conditions.empty is None and conditions.image is None
    assert engine.conditions(batch, negative, Guidance()).empty is not None
    never = Guidance(scale=3.0, interval=(0.0, 0.0))  # evaluated nowhere: the same velocity
    made, wanted = (engine.generate(replace(SPEC, guidance=g), CAST) for g in (off, never))
    assert np.array_equal(made.frames, wanted.frames)


def test_conditions_are_computed_once_per_request(engine):
    calls = {"text": 0, "stream": 0, "step": 0}
    watched = {
        "text": engine.dit.text_embedding,
        "stream": engine.dit.subject_blocks[0],
        "step": engine.dit.head,
    }

    def count(name: str):  # noqa: ANN202
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    handles = [module.register_forward_hook(count(name)) for name, module in watched.items()]
    engine.generate(replace(SPEC, steps=5), CAST)
    for handle in handles:
        handle.remove()
    assert calls == {"text": 2, "stream": 1, "step": 10}


def test_encoders_run_once_for_a_request_that_comes_again():
    engine = random_engine()
    calls: list[int] = []
    engine.encoders.text.model.register_forward_hook(lambda *_: calls.append(1))
    engine.generate(SPEC, CAST)
    first = len(calls)
    engine.generate(replace(SPEC, seed=99), CAST)
    assert len(calls) == first == 2
    engine.generate(SPEC, CAST, scope="somebody else")
    assert len(calls) == 2 * first


def test_a_run_resumes_to_the_same_bits(engine):
    for solver in ("euler", "unipc"):
        plan = flow.schedule(solver, 5, 3.0)
        request, negative = (stack([e]) for e in engine.encode(SPEC, CAST))
        saved: list[Step] = []
        given = (request, negative, [3], (16, 2, 8, 12), plan, Guidance())
        whole = engine.sample(*given, on_step=saved.append)
        again = engine.sample(*given, resume=saved[1])
        assert torch.equal(whole, again)


def test_identity_guidance_moves_what_subjects_look_like(moving_engine):
    """And nothing else: not a video without subjects, nor one that does not ask for it."""
    engine, plain = moving_engine, random_engine()
    asked = replace(SPEC, guidance=replace(SPEC.guidance, identity_scale=0.3))
    moved = engine.generate(asked, CAST)
    assert engine.generate(asked, CAST).mp4() == moved.mp4()
    still = plain.generate(SPEC, CAST).frames
    assert np.array_equal(engine.generate(SPEC, CAST).frames, still)
    assert not np.array_equal(moved.frames, still)
    nobody = Spec.of(TOY_PRESET, "a sunny meadow", seed=7)
    alone = replace(nobody, guidance=asked.guidance)
    assert np.array_equal(
        engine.generate(alone, []).frames, plain.generate(nobody, []).frames
    )
    with pytest.raises(SpecError) as caught:
        plain.generate(asked, CAST)
    assert caught.value.field == "guidance.identity_scale"


def test_identity_guidance_goes_through_the_transformer(moving_engine, monkeypatch):
    """Through its forward with prompt and subjects, and only where it is asked for."""
    asked = replace(SPEC, guidance=replace(SPEC.guidance, identity_scale=0.3))
    seen, real = [], batching.pullback
    monkeypatch.setattr(batching, "pullback", lambda *told: seen.append(told[2]) or real(*told))
    through = moving_engine.generate(asked, CAST)
    full, negative = (stack([one]) for one in moving_engine.encode(SPEC, CAST))
    wanted = moving_engine.conditions(full, negative, asked.guidance)
    its, other = seen[0].text[0][0], wanted.empty.text[0][0]
    assert torch.equal(its, wanted.full.text[0][0]) and not torch.equal(its, other)
    assert seen[0].subjects is not None and wanted.empty.subjects is None
    moving_engine.generate(SPEC, CAST)
    assert len(seen) == 1
    monkeypatch.setattr(batching, "pullback", lambda *_: None)
    assert not np.array_equal(through.frames, moving_engine.generate(asked, CAST).frames)


def test_a_run_under_identity_guidance_resumes_to_the_same_bits(moving_engine):
    request, negative = (stack([e]) for e in moving_engine.encode(SPEC, CAST))
    plan, saved = flow.schedule("unipc", 6, 3.0), []
    given = (request, negative, [3], (16, 2, 8, 12), plan, Guidance(identity_scale=0.3))
    whole = moving_engine.sample(*given, on_step=saved.append)
    assert torch.equal(whole, moving_engine.sample(*given, resume=saved[2]))
    with pytest.raises(BackendError, match="identity_scale"):
        random_engine().sample(*given)


def test_a_batch_is_its_requests(engine):
    """Evaluation samples many at once; each must be what it would be alone."""
    solo = Spec.of(TOY_PRESET, "@carl spins", ("carl",))
    encoded = [engine.encode(SPEC, CAST)[0], engine.encode(solo, [picture("carl")])[0]]
    negative = stack([engine.encode(solo, [picture("carl")])[1]])
    plan, shape = flow.schedule("euler", 3, 1.0), (16, 2, 8, 12)
    both = engine.sample(stack(encoded), negative, [1, 2], shape, plan, Guidance())
    for row, one in enumerate(encoded):
        alone = engine.sample(stack([one]), negative, [row + 1], shape, plan, Guidance())
        torch.testing.assert_close(both[row : row + 1], alone, rtol=2e-3, atol=2e-3)


def test_noise_of_a_row_is_its_seeds_own():
    both = noise("identity", [3, 4], (2, 5, 1, 1), 2)
    assert torch.equal(both[1:], noise("identity", [4], (2, 5, 1, 1), 2))
