"""Runs over two and four real processes against the run of one, in every family."""

import os
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from engine import flow
from engine.compile import velocity_of
from engine.encodings import EncodingsBatch
from engine.errors import BackendError
from engine.parallel import ELSEWHERE, Parallel, join
from engine.pipeline import Engine
from engine.presets import DiTConfig
from engine.sample import Conditions
from engine.spec import Guidance, Spec
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
    "vace": ("vace", VACE, 2, Guidance()),
}


def latents(name: str, team=None) -> Tensor:
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
        batch(num_subjects), batch(0), [5], SHAPE, plan, guidance, context_BCFHW=context
    )


def difference(got: Tensor, want: Tensor) -> float:
    """Zero only for the same bits."""
    if torch.equal(got, want):
        return 0.0
    return max(float((got - want).abs().max() / want.abs().max()), 1e-30)


def _differences(team) -> dict[str, float]:
    found = {name: difference(latents(name, team), latents(name)) for name in RUNS}
    spec = Spec.of(TOY_PRESET, "@anna waves", ("anna",), seed=7)
    video, alone = (
        random_engine(team=given).generate(spec, [picture("anna")]) for given in (team, None)
    )
    return found | {"frames": float((video.frames != alone.frames).mean())}


@pytest.fixture(scope="module", params=["cfg=2", "sequence=2", "cfg=2,sequence=2"])
def differences(request, tmp_path_factory):
    """Of each process, by run; and what they had to share."""
    size = 4 if "," in request.param else 2
    found = together(_differences, request.param, size, tmp_path_factory.mktemp("run"))
    return request.param, found


def test_every_process_has_the_latents_of_a_lone_one(differences):
    """To the bit where forwards are shared out; up to rounding where a sequence is."""
    text, found = differences
    for each in found:
        most = 0.0 if text == "cfg=2" else 1e-5
        assert {name: d for name, d in each.items() if d > most and name != "frames"} == {}
        assert each["frames"] <= (0.0 if text == "cfg=2" else 1e-3)
    assert all(each == found[0] for each in found)
    print(text, found[0])
