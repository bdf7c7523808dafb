"""Runs over two and four real processes against the run of one, in every family."""

import os
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as td
from torch import Tensor

from engine import flow
from engine.compile import velocity_of
from engine.dit import Condition
from engine.encodings import EncodingsBatch
from engine.errors import BackendError
from engine.parallel import ELSEWHERE, Parallel, Team, join
from engine.pipeline import Engine
from engine.presets import DiTConfig
from engine.sample import Conditions, Step
from engine.spec import Guidance, Spec
from engine.split import Split
from engine.vace import build_dit
from tests.engine.conftest import TOY, TOY_PRESET, picture, random_encoders, random_engine
from tests.engine.processes import together

SHAPE = (16, 3, 6, 10)  # 45 tokens of 2 x 2
THREE_HEADS = replace(TOY, num_heads=3, subject_dim=48)
PLAIN = replace(TOY, subject_layers=0)
VACE = replace(PLAIN, vace_layers=(0, 2), vace_in_dim=96)
# Name -> family, transformer, subjects, guidance.
RUNS: dict[str, tuple[str, DiTConfig, int, Guidance]] = {
    "one subject": ("identity", THREE_HEADS, 1, Guidance()),
    "four subjects": ("identity", THREE_HEADS, 4, Guidance("dual")),
    "no subject": ("identity", THREE_HEADS, 0, Guidance("dual")),
    "an interval": ("identity", TOY, 2, Guidance("dual", interval=(0.0, 0.6))),
    "concat": ("identity", replace(TOY, layout="concat"), 2, Guidance()),
    "phantom": ("phantom", PLAIN, 2, Guidance("dual")),
    "pulled": ("identity", TOY, 2, Guidance(subject_scale=1.5)),
    "pulled alone": ("identity", TOY, 2, Guidance(scale=1.0, subject_scale=1.5)),
    "pulled phantom": ("phantom", PLAIN, 2, Guidance(subject_scale=1.5)),
    "vace": ("vace", VACE, 2, Guidance()),
}


def latents(name: str, team=None, on_step=None) -> Tensor:
    """Four steps of one of `RUNS`."""
    family, config, num_subjects, guidance = RUNS[name]
    torch.manual_seed(3)
    dit = build_dit(config).eval()
    for parameter in dit.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.1)
    generator = torch.Generator().manual_seed(1)

    def batch(num: int) -> EncodingsBatch:
        return EncodingsBatch(
            text_BTM=torch.randn(1, 10, 20, generator=generator),
            refs_BSCHW=torch.randn(1, num, 16, *SHAPE[2:], generator=generator),
            tags_BSM=torch.randn(1, num, 20, generator=generator),
            subject_mask_BS=torch.ones(1, num, dtype=torch.bool),
            vlm_BVM=torch.randn(1, 5 if num else 0, 12, generator=generator),
            vlm_mask_BV=torch.ones(1, 5 if num else 0, dtype=torch.bool),
        )

    context = None
    if family == "vace":
        context = torch.randn(1, 96, SHAPE[1] + num_subjects, *SHAPE[2:], generator=generator)
    preset = replace(TOY_PRESET, family=family, dit=config)
    engine = Engine(dit, random_encoders(), preset, "random", team=team)
    plan = flow.schedule("unipc", 4, 3.0)
    return engine.sample(
        batch(num_subjects), batch(0), [5], SHAPE, plan, guidance, on_step, context_BCFHW=context
    )


def difference(got: Tensor, want: Tensor) -> float:
    """Zero only for the same bits."""
    if torch.equal(got, want):
        return 0.0
    return max(float((got - want).abs().max() / want.abs().max()), 1e-30)


def _run(team) -> dict[str, object]:
    """What one process finds: differences of latents by run, of frames, and a few answers."""
    found = {name: difference(latents(name, team), latents(name)) for name in RUNS}
    spec = Spec.of(TOY_PRESET, "@anna waves", ("anna",), seed=7)
    video, alone = (
        random_engine(team=given).generate(spec, [picture("anna")]) for given in (team, None)
    )
    kept = team.own(Conditions(*(Condition(text=(), tail_BCFHW=torch.ones(1)) for _ in range(3))))
    return {
        "latents": found,
        "frames": float((video.frames != alone.frames).mean()),
        "made": video.made == alone.made,
        "kept": [each is not ELSEWHERE for each in kept if each is not None],
        "spoke": [team.speaks(), team.speaks()],
    }


@pytest.fixture(scope="module", params=["cfg=2", "sequence=2", "cfg=2,sequence=2"])
def run(request, tmp_path_factory):
    """How the work was shared out, and what each process found."""
    size = 4 if "," in request.param else 2
    return request.param, together(_run, request.param, size, tmp_path_factory.mktemp("run"))


def test_every_process_has_the_latents_of_a_lone_one(run):
    """To the bit where forwards are shared out; up to rounding where a sequence is."""
    text, found = run
    most = 0.0 if text == "cfg=2" else 1e-5
    for each in found:
        assert {name: d for name, d in each["latents"].items() if d > most} == {}
        assert each["latents"] == found[0]["latents"]
        assert each["made"]
        assert each["frames"] <= (0.0 if text == "cfg=2" else 1e-3)


def test_a_process_keeps_only_what_it_evaluates(run):
    """Three forwards over two: the last has two of them."""
    text, found = run
    wanted = {
        "cfg=2": [[True, False, False], [False, True, True]],
        "sequence=2": [[True] * 3] * 2,
        "cfg=2,sequence=2": [[True, False, False]] * 2 + [[False, True, True]] * 2,
    }
    assert [each["kept"] for each in found] == wanted[text]


def test_one_process_tells_what_went_wrong(run):
    told = [each["spoke"] for each in run[1]]
    assert sum(first for first, _ in told) == 1 and all(a == b for a, b in told)


@pytest.mark.parametrize(
    "text, size, found",
    [
        ("cfg", 3, (3, 1)),
        ("sequence", 4, (1, 4)),
        ("cfg=2, sequence=3", 6, (2, 3)),
        ("sequence=2,cfg", 4, (2, 2)),
        ("cfg=1", 1, (1, 1)),
    ],
)
def test_ways_to_say_it(text, size, found):
    assert Parallel.parse(text, size) == found


@pytest.mark.parametrize(
    "text, size, why",
    [
        ("", 2, "must be like"),
        ("ring=2", 2, "must be like"),
        ("cfg=2,cfg=2", 4, "must be like"),
        ("cfg=two", 2, "must be like"),
        ("cfg=-2", 2, "must be like"),
        ("cfg=0", 2, "must be like"),
        ("cfg=2,sequence=0", 4, "must be like"),
        ("cfg", 4, "cfg must be from 1 to 3"),
        ("sequence,cfg", 2, "for 4 processes, and 2 run"),
        ("cfg,sequence=3", 2, "cfg must be from 1 to 3"),
        ("cfg=2", 4, "for 2 processes, and 4 run"),
    ],
)
def test_what_cannot_be_is_refused(text, size, why):
    with pytest.raises(BackendError, match=why):
        Parallel.parse(text, size)


def test_it_takes_torchrun(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(BackendError, match="torchrun --nproc-per-node 2"):
        join("cfg")


@pytest.mark.parametrize(
    "parallel, work, why",
    [
        (Parallel(cfg=2), lambda team: team.own(Conditions(ELSEWHERE)), "at most 1"),
        (Parallel(sequence=3), lambda team: team.twin(build_dit(TOY), "eager"), "at most 2"),
        (Parallel(sequence=2), lambda team: team.twin(build_dit(TOY), "aoti"), "'inductor'"),
    ],
)
def test_what_a_model_or_a_request_cannot_share_is_refused(parallel, work, why):
    team = Team(0, parallel, td.HashStore(), split=Split("none", 0, parallel.sequence))
    with pytest.raises(BackendError, match=why):
        work(team)


def test_a_twin_leaves_the_model_alone():
    dit = build_dit(VACE)
    split = Split("none", 0, 2)
    twin = Team(0, Parallel(sequence=2), td.HashStore(), split=split).twin(dit, "eager")
    parts = [*twin.blocks, *twin.vace_blocks, twin]
    assert all(part.split is split for part in parts)
    assert dit.split is None and all(part.split is None for part in (*dit.blocks, *dit.vace_blocks))
    assert all(a is b for a, b in zip(twin.parameters(), dit.parameters(), strict=True))


def _compiled(team) -> float:
    config, generator = THREE_HEADS, torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    dit = build_dit(config).eval()
    torch.nn.init.normal_(dit.head.head.weight)
    x = torch.randn(1, *SHAPE, generator=generator)
    given = torch.tensor([0.5]), dit.condition(torch.randn(1, 10, 20, generator=generator))
    got = velocity_of(team.twin(dit, "inductor"), "inductor")(x, *given)
    return difference(got, dit.denoise(x, *given))


@pytest.mark.slow
def test_blocks_that_exchange_can_be_compiled(tmp_path):
    found = together(_compiled, "sequence=2", 2, tmp_path)
    assert found == [found[0]] * 2 and 0 < found[0] <= 1e-5


def _abandoned(how: str, team) -> str:
    """What a process says whose neighbour ends, or stands still, in the second step."""

    def leave(step: Step) -> None:
        if team.rank and how == "ends":
            os._exit(9)
        if team.rank:
            team.store.wait(["told"])

    try:
        latents("phantom", team, leave)
    except BackendError as error:
        team.store.set("told", "")
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, how", [("cfg=2", "ends"), ("sequence=2", "ends"), ("cfg=2", "hangs")]
)
def test_none_waits_for_ever(text, how, tmp_path):
    found = together(partial(_abandoned, how), text, 2, tmp_path, timedelta(seconds=20))
    assert found[0].startswith("parallel: another process has ended or hangs; process 0 cannot")
