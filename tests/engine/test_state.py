"""Runs that stop after any step and go on elsewhere, against the run that was not stopped."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as td
from safetensors.torch import load, save

from engine.edit import Edit
from engine.errors import BackendError, StateError
from engine.parallel import Parallel, Team
from engine.pipeline import Engine, Progress
from engine.runtime import Runtime
from engine.spec import Guidance, Spec
from engine.state import DenoiseState
from engine.tiers import THRESHOLDS, Tally
from engine.vace import build_dit
from engine.video import Video
from tests.engine.conftest import TOY_PRESET, picture, random_encoders, random_engine

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
SPEC = Spec.of(TOY_PRESET, "@anna waves to @bob", ("anna", "bob"), seed=7, steps=STEPS)
CAST = [picture("anna"), picture("bob", (20, 40, 220))]
OFTEN = 0.5  # on random weights: some forwards are skipped, some are not
MASK = np.zeros((32, 48), bool)
MASK[:, 24:] = True
FRAMES = np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8)
EDIT = Edit(Video(FRAMES, 8), 0.8, MASK)  # enters at step 1


def engine_of(family: str) -> Engine:
    """Random weights, the same in every process."""
    if family == "identity":
        return random_engine()
    layers = (0, 2) if family == "vace" else ()
    config = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False, vace_layers=layers)
    config = replace(config, vace_in_dim=48)
    changed = {"family": family, "dit": config, "reference_width": 0, "reference_height": 0}
    torch.manual_seed(0)
    dit = build_dit(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return Engine(dit, random_encoders(), replace(TOY_PRESET, **changed), family)


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {family: engine_of(family) for family in ("identity", "phantom", "vace")}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(THRESHOLDS, "fast", OFTEN)


def watched(engine: Engine, spec: Spec = SPEC, **given: object) -> tuple[Video, list[bytes]]:
    """A video, and the states on the way to it."""
    kept: list[bytes] = []
    video = engine.generate(spec, CAST, on_state=lambda s: kept.append(s.to_bytes()), **given)
    return video, kept


def gone_on(engine: Engine, data: bytes, spec: Spec = SPEC, **given: object) -> Video:
    return engine.generate(spec, CAST, resume=DenoiseState.from_bytes(data), **given)


def same(got: Video, want: Video) -> bool:
    """Frames, forwards asked and computed, and so the file."""
    return np.array_equal(got.frames, want.frames) and got.made == want.made


KINDS = [*product(("identity", "phantom"), ("exact", "fast")), ("vace", "exact")]
# The negative prompt first comes when the other has a past, and goes before it.
GUIDANCES = {
    "single": Guidance(),
    "late": Guidance("dual", interval=(0.0, 0.8)),
    "early": Guidance("dual", interval=(0.6, 1.0)),
}


@pytest.mark.parametrize("edit", [None, EDIT], ids=["anew", "edit"])
@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("solver", ["euler", "unipc"])
@pytest.mark.parametrize(("family", "tier"), KINDS)
def test_it_ends_in_the_same_bytes_from_every_step(engines, family, solver, guidance, tier, edit):
    engine, spec = engines[family], replace(SPEC, solver=solver, tier=tier)
    spec = replace(spec, guidance=GUIDANCES[guidance])
    alone = engine.generate(spec, CAST, edit=edit)
    whole, states = watched(engine, spec, edit=edit)
    assert same(whole, alone) and len(states) == STEPS - (edit is not None)
    for done, data in enumerate(states, 1):
        resumed, rest = watched(engine, spec, edit=edit, resume=DenoiseState.from_bytes(data))
        assert same(resumed, alone)
        assert rest == states[done:]


def test_fast_runs_in_these_tests_skip_some_forwards(engines):
    for family in ("identity", "phantom"):
        made = engines[family].generate(replace(SPEC, tier="fast"), CAST).made
        assert 0 < made.computed < made.asked


def test_a_past_costs_a_forward_of_each_condition_and_little_room(engines):
    engine, spec = engines["identity"], replace(SPEC, tier="fast", guidance=Guidance("dual"))
    _, states = watched(engine, spec)
    steps: list[int] = []
    handle = engine.dit.head.register_forward_hook(lambda *_: steps.append(1))
    gone_on(engine, states[2], spec)
    handle.remove()
    assert len(steps) == 3 + 3
    state = DenoiseState.from_bytes(states[2])
    assert len(state.tally.moments) == 3
    # All three at one step: its latents are in it once.
    assert 0 < len(states[2]) - 2 * state.step.x.nbytes < 2000


CHILD = """
import hashlib, sys
import torch
from dataclasses import replace
from engine.spec import Guidance
from engine.tiers import THRESHOLDS
from tests.engine import test_state as t

torch.set_num_threads(int(sys.argv[1]))
THRESHOLDS["fast"] = t.OFTEN
for given in sys.argv[2:]:
    family, solver, tier, path = given.split(",")
    spec = replace(t.SPEC, solver=solver, tier=tier)
    edit = t.EDIT if family == "vace" else None
    engine = t.engine_of(family)
    data = open(path, "rb").read()
    print(hashlib.sha256(t.gone_on(engine, data, spec, edit=edit).mp4()).hexdigest())
"""
RUNS = [
    ("identity", "unipc", "fast"),
    ("identity", "euler", "exact"),
    ("phantom", "unipc", "fast"),
    ("vace", "unipc", "exact"),
]


@pytest.mark.slow
def test_another_process_ends_in_the_same_file(engines, tmp_path):
    wanted, given = [], []
    for family, solver, tier in RUNS:
        edit = EDIT if family == "vace" else None
        spec = replace(SPEC, solver=solver, tier=tier)
        video, states = watched(engines[family], spec, edit=edit)
        path = tmp_path / f"{family}-{solver}"
        path.write_bytes(states[2])
        wanted.append(hashlib.sha256(video.mp4()).hexdigest())
        given.append(f"{family},{solver},{tier},{path}")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(torch.get_num_threads()), *given],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == wanted, done.stderr


def test_progress_tells_the_true_steps(engines):
    told: list[Progress] = []
    _, states = watched(engines["identity"])
    gone_on(engines["identity"], states[2], on_progress=told.append)
    steps = [(p.step, p.num_steps) for p in told if p.stage == "denoise"]
    assert steps == [(3, STEPS), (4, STEPS)]


def test_a_state_comes_before_the_steps_progress_and_copies_nothing(engines):
    told: list[object] = []
    engines["identity"].generate(SPEC, CAST, told.append, on_state=told.append)
    kinds = [type(one) for one in told[2:-3]]
    assert kinds == [DenoiseState, Progress] * STEPS
    states = [one for one in told if isinstance(one, DenoiseState)]
    assert [state.step.done for state in states] == [1, 2, 3, 4]
    assert all(state.origin is states[0].origin for state in states)
    assert states[1].tally == Tally(4, 4)
    # Kept and asked for afterwards, each is still what it was.
    assert [state.to_bytes() for state in states] == watched(engines["identity"])[1]


def test_what_is_stored_tells_nothing_of_the_request(engines):
    _, states = watched(engines["identity"])
    assert not any(word in data for data in states for word in (b"anna", b"waves", b"bob"))


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("spec", "cast", "edit", "what"),
    [
        (replace(SPEC, seed=8), CAST, EDIT, "request"),
        (replace(SPEC, steps=5), CAST, EDIT, "request"),
        (replace(SPEC, solver="unipc"), CAST, EDIT, "request"),
        (replace(SPEC, tier="fast"), CAST, EDIT, "request"),
        (replace(SPEC, guidance=Guidance(scale=3.0)), CAST, EDIT, "request"),
        (replace(SPEC, negative_prompt="dark"), CAST, EDIT, "request, encodings"),
        (SPEC, [CAST[0], picture("bob", (20, 41, 220))], EDIT, "encodings"),
        (SPEC, CAST, None, "clip"),
        (SPEC, CAST, replace(EDIT, strength=1.0), "clip"),
        (SPEC, CAST, replace(EDIT, mask=None), "clip"),
        (SPEC, CAST, replace(EDIT, mask=~MASK), "clip"),
        (SPEC, CAST, replace(EDIT, video=Video(FRAMES ^ 1, 8)), "clip"),
    ],
)
def test_a_state_of_another_run_is_refused(engines, spec, cast, edit, what):
    engine = engines["identity"]
    _, states = watched(engine, edit=EDIT)
    told: list[Progress] = []
    state = DenoiseState.from_bytes(states[1])
    with pytest.raises(StateError, match=f"with other {what}$"):
        engine.generate(spec, cast, told.append, edit=edit, resume=state)
    assert [one.stage for one in told] == ["encode"]


def test_other_weights_and_another_way_of_computing_are_refused(engines):
    _, states = watched(engines["identity"])
    with pytest.raises(StateError, match="other weights, encodings$"):
        gone_on(random_engine(seed=1), states[1])
    with pytest.raises(StateError, match="other computing$"):
        gone_on(random_engine(compile="inductor"), states[1])
    half = random_engine()
    half.dit.blocks.bfloat16()
    with pytest.raises(StateError, match="other computing$"):
        gone_on(half, states[1])
    with threads(torch.get_num_threads() + 1), pytest.raises(StateError, match="other computing$"):
        gone_on(engines["identity"], states[1])


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "dtype=bf16", "weights=int8", "offload=group"])
def test_a_freshly_loaded_model_goes_on(loud_model, text):
    """Where the weights lie changes no bit; their precision does."""
    cast = [picture("anna")]
    runtime = Runtime.parse(text)
    first = Engine.load(loud_model, runtime=runtime)
    spec = Spec.of(first.preset, "@anna waves", ("anna",), width=32, height=32, num_frames=5)
    spec = replace(spec, steps=4, seed=3, solver="unipc")
    kept: list[bytes] = []
    video = first.generate(spec, cast, on_state=lambda s: kept.append(s.to_bytes()))
    state = DenoiseState.from_bytes(kept[1])
    again = Engine.load(loud_model, runtime=runtime).generate(spec, cast, resume=state)
    assert again.mp4() == video.mp4()
    standard = Engine.load(loud_model)
    if text in ("", "offload=group"):
        assert standard.generate(spec, cast, resume=state).mp4() == video.mp4()
    else:
        with pytest.raises(StateError, match="computing$"):
            standard.generate(spec, cast, resume=state)


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["exact", "fast"])
def test_a_compiled_run_goes_on(engines, tier):
    dit, spec = engines["identity"].dit, replace(SPEC, tier=tier)
    whole, other = (
        Engine(dit, random_encoders(), TOY_PRESET, "compiled", compile="inductor") for _ in "ab"
    )
    video, states = watched(whole, spec)
    assert same(gone_on(other, states[2], spec), video)


def test_damaged_bytes_are_refused(engines):
    data = watched(engines["identity"], replace(SPEC, solver="unipc"))[1][0]
    head = 8 + int.from_bytes(data[:8], "little")
    for place in (*range(head), *range(head, len(data), 37), len(data) - 1):
        altered = bytearray(data)
        altered[place] ^= 1
        with pytest.raises(StateError):
            DenoiseState.from_bytes(bytes(altered))
    for length in (0, 7, 8, head - 1, head, len(data) // 2, len(data) - 1):
        with pytest.raises(StateError):
            DenoiseState.from_bytes(data[:length])
    for other in (data + b"\0", b"not a state", save({"x": torch.zeros(2)})):
        with pytest.raises(StateError):
            DenoiseState.from_bytes(other)
    # Honest tensors in the place of others'.
    tensors = load(data)
    exchanged = tensors | {"0": tensors["1"], "1": tensors["0"]}
    length = int.from_bytes(data[:8], "little")
    told = json.loads(data[8 : 8 + length])["__metadata__"]
    with pytest.raises(StateError, match="altered"):
        DenoiseState.from_bytes(save(exchanged, told))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"x": torch.zeros(1, 16, 2, 8, 13)}, "must be float32"),
        ({"x": torch.zeros(1, 16, 2, 8, 12).double()}, "must be float32"),
        ({"num_steps": 5}, "is no step"),
        ({"done": 0}, "is no step"),
        ({"done": 5}, "is no step"),
        ({"history": None}, "the history is not one of euler"),
    ],
)
def test_what_does_not_fit_the_run_is_named(engines, change, why):
    _, states = watched(engines["identity"])
    state = DenoiseState.from_bytes(states[1])
    if "history" in change:
        last = state.step.x
        change = {"history": state.step.history._replace(x0s=(last,), last=last)}
    wrong = replace(state, step=state.step._replace(**change))
    with pytest.raises(StateError, match=why):
        engines["identity"].generate(SPEC, CAST, resume=wrong)


def test_a_history_must_be_there_for_unipc(engines):
    spec = replace(SPEC, solver="unipc")
    state = DenoiseState.from_bytes(watched(engines["identity"], spec)[1][1])
    assert len(state.step.history.x0s) == 2
    wrong = replace(state, step=state.step._replace(history=state.step.history._replace(x0s=())))
    with pytest.raises(StateError, match="the history is not one of unipc"):
        engines["identity"].generate(spec, CAST, resume=wrong)


def test_a_team_has_no_states():
    engine = random_engine(team=Team(0, Parallel(cfg=2), td.HashStore()))
    with pytest.raises(BackendError, match="for one process"):
        engine.generate(SPEC, CAST, on_state=lambda state: None)
