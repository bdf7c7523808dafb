"""Tiers: the exact one is untouched, the fast one skips what it says and nothing leaks."""

from dataclasses import replace

import pytest
import torch
from diffusers import FirstBlockCacheConfig

from engine import families, flow
from engine.compile import velocity_of
from engine.dit import WanDiT
from engine.encodings import stack
from engine.errors import SpecError
from engine.presets import MINIATURE, VACE_1_3B
from engine.sample import Step, sample
from engine.spec import Guidance, Spec
from engine.tiers import THRESHOLDS, Run, served
from engine.vace import VaceDiT
from tests.engine.conftest import (
    TOY,
    TOY_PRESET,
    diffusers_twin,
    picture,
    random_dit,
    random_engine,
    random_inputs,
)

SPEC = Spec.of(TOY_PRESET, "@anna waves to @bob", ("anna", "bob"), seed=7, steps=8)
CAST = [picture("anna"), picture("bob", (20, 40, 220))]
OFTEN = 0.5  # on random weights: some forwards are skipped, some are not


def blocks_run(dit: WanDiT) -> list[list[int]]:
    """Counts of every block's forwards, kept up to date by hooks."""
    counts = [[0] for _ in dit.blocks]
    for count, block in zip(counts, dit.blocks, strict=True):
        block.register_forward_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
    return counts


def latents_of(engine, run: Run, guidance: Guidance = SPEC.guidance, **options: object):
    request, negative = (stack([part]) for part in engine.encode(SPEC, CAST))
    plan = flow.schedule("euler", 8, 3.0)
    given = request, negative, [3], (16, 2, 8, 12), plan, guidance
    return engine.sample(*given, run=run, **options)


@pytest.mark.parametrize("guidance", [Guidance(scale=1.0), Guidance(), Guidance("dual")], ids=str)
def test_a_threshold_of_zero_is_exact_to_the_bit(engine, guidance):
    run = Run(engine.velocity, "fast", threshold=0.0)
    exact = Run(engine.velocity)
    assert torch.equal(latents_of(engine, run, guidance), latents_of(engine, exact, guidance))
    forwards = 8 * (1 if guidance.is_off else 2 if guidance.mode == "single" else 3)
    assert run.asked == run.computed == exact.asked == exact.computed == forwards


@pytest.mark.parametrize("guidance", [Guidance(), Guidance("dual"), Guidance(interval=(0.2, 0.8))])
def test_counts_say_what_was_skipped(guidance):
    engine = random_engine()
    counts = blocks_run(engine.dit)
    run = Run(engine.velocity, "fast", OFTEN)
    latents_of(engine, run, guidance)
    assert counts == [[run.asked], [run.computed], [run.computed]]
    assert 0 < run.computed < run.asked


def test_it_says_what_diffusers_says():
    """diffusers' hooks on its own transformer, two conditions in turns."""
    plain = replace(TOY, subject_layers=0)
    model, given = random_dit(plain), random_inputs()
    theirs = diffusers_twin(model)
    theirs.enable_cache(FirstBlockCacheConfig(threshold=OFTEN))
    run = Run(model.denoise, "fast", OFTEN)
    texts = {"cond": given["text"], "uncond": -2 * given["text"]}
    conditions = {name: model.condition(text) for name, text in texts.items()}
    x, skipped = given["x"], []
    for t in torch.linspace(0.95, 0.05, 8, dtype=torch.float64):
        for name, text in texts.items():
            before = run.computed
            got = run(x, t[None], conditions[name])
            with theirs.cache_context(name):
                wanted = theirs(x, t[None].float() * 1000, text).sample
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
            skipped.append(run.computed == before)
        x = x - 0.12 * got
    assert any(skipped) and not all(skipped)


def test_the_model_itself_is_left_alone(engine):
    blocks, names = list(engine.dit.blocks), dict(engine.dit.named_modules()).keys()
    before = engine.generate(SPEC, CAST)
    engine.generate(replace(SPEC, tier="fast"), CAST)
    assert list(engine.dit.blocks) == blocks and dict(engine.dit.named_modules()).keys() == names
    after = engine.generate(SPEC, CAST)
    assert (after.frames == before.frames).all() and after.mp4() == before.mp4()


def test_requests_between_each_others_steps_share_nothing(engine):
    """A second run starts and ends in the middle of the first."""
    alone = latents_of(engine, Run(engine.velocity, "fast", OFTEN))
    inner: list[torch.Tensor] = []

    def meanwhile(step: Step) -> None:
        if step.done == 4:
            inner.append(latents_of(engine, Run(engine.velocity, "fast", OFTEN), Guidance("dual")))

    outer = latents_of(engine, Run(engine.velocity, "fast", OFTEN), on_step=meanwhile)
    assert torch.equal(outer, alone)
    assert torch.equal(
        inner[0], latents_of(engine, Run(engine.velocity, "fast", OFTEN), Guidance("dual"))
    )


def test_a_video_says_how_it_was_made(engine, monkeypatch):
    monkeypatch.setitem(THRESHOLDS, "fast", OFTEN)
    exact, fast = (engine.generate(replace(SPEC, tier=tier), CAST) for tier in ("exact", "fast"))
    assert (exact.made.tier, exact.made.asked, exact.made.computed) == ("exact", 16, 16)
    assert (fast.made.tier, fast.made.asked) == ("fast", 16) and fast.made.computed < 16
    again = engine.generate(replace(SPEC, tier="fast"), CAST)
    assert again.mp4() == fast.mp4() != exact.mp4() and again.made == fast.made


def test_a_resumed_run_computes_its_first_step(engine):
    saved: list[Step] = []
    whole = Run(engine.velocity, "fast", 1e9)  # all but the first step are skipped
    latents_of(engine, whole, on_step=saved.append)
    assert (whole.asked, whole.computed) == (16, 2)
    again = Run(engine.velocity, "fast", 1e9)
    latents_of(engine, again, resume=saved[3])
    assert (again.asked, again.computed) == (8, 2)


@pytest.mark.parametrize("mode", ["single", "dual"])
def test_phantom_skips_too(engine, mode):
    config = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False)
    model = random_dit(config).requires_grad_(False)
    batch, negative = (stack([part]) for part in engine.encode(SPEC, CAST))
    guidance = Guidance(mode)
    found = families.conditions("phantom", model, batch, negative, guidance)
    x, plan = torch.randn(1, 16, 2, 16, 16), flow.schedule("euler", 6, 3.0)
    zero = sample(Run(model.denoise, "fast", 0.0), x, found, plan, guidance)
    assert torch.equal(zero, sample(model.denoise, x, found, plan, guidance))
    run = Run(model.denoise, "fast", OFTEN)
    assert sample(run, x, found, plan, guidance).isfinite().all() and run.computed < run.asked


@pytest.mark.slow
def test_compiled_blocks_skip_as_eager_ones_do():
    model, given = random_dit().requires_grad_(False), random_inputs()
    condition = model.condition(given["text"], given["subjects"])
    eager, compiled = (
        Run(velocity_of(model, mode), "fast", OFTEN) for mode in ("eager", "inductor")
    )
    x = given["x"]
    for t in torch.linspace(0.95, 0.05, 6, dtype=torch.float64):
        wanted, got = (run(x, t[None], condition) for run in (eager, compiled))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        x = x - 0.15 * wanted
    assert eager.computed == compiled.computed < eager.asked == 6


def test_a_lossy_tier_takes_one_request_at_a_time():
    model, given = random_dit(), random_inputs(batch=2)
    condition = model.condition(given["text"], given["subjects"])
    with pytest.raises(AssertionError, match="one request at a time"):
        Run(model.denoise, "fast")(given["x"], given["t"], condition)


def test_what_cannot_skip_says_so(tmp_path):
    packaged = velocity_of(random_dit(), "aoti", tmp_path)
    with pytest.raises(SpecError, match="tier.*'eager' and 'inductor'"):
        Run(packaged, "fast")
    assert Run(packaged).tier == "exact" and served(packaged) == ("exact",)
    vace = VaceDiT(replace(TOY, subject_layers=0, vace_layers=(0, 2), vace_in_dim=36))
    with pytest.raises(SpecError, match="context blocks"):
        Run(vace.denoise, "fast")
    single = random_dit(replace(TOY, num_layers=1, subject_layers=0))
    with pytest.raises(SpecError, match="this model has one"):
        Run(single.denoise, "fast")
    shared = random_dit()
    shared.split = object()
    with pytest.raises(SpecError, match="shared out over processes"):
        Run(shared.denoise, "fast")
    assert served(random_dit().denoise) == ("exact", "fast")
    assert served(random_dit().denoise, ("exact",)) == ("exact",)


@pytest.mark.parametrize(
    ("preset", "tier", "allowed"),
    [
        (MINIATURE, "fast", "exact, fast"),
        (MINIATURE, "Fast", "exact, fast"),
        (VACE_1_3B, "fast", "exact"),
        (MINIATURE, 3, "exact, fast"),
    ],
)
def test_a_spec_names_the_tiers_there_are(preset, tier, allowed):
    spec = Spec.of(preset, "a meadow", tier=tier)
    assert Spec.of(preset, "a meadow").tier == "exact"
    if (preset, tier) == (MINIATURE, "fast"):
        spec.validate(preset.limits)
        assert Spec.from_json(spec.to_json()) == spec
        return
    with pytest.raises(SpecError) as caught:
        spec.validate(preset.limits)
    assert caught.value.field == "tier"
    assert str(caught.value).endswith(f"one of {allowed}, got {tier!r}")


def test_a_record_from_before_tiers_is_exact():
    old = Spec.of(MINIATURE, "a meadow").to_json()
    del old["tier"]
    assert Spec.from_json(old).tier == "exact"
