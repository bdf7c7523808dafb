"""The shipped classes with random weights at a toy size, as policies of reinforcement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from engine.encoder import Encoder
from engine.encodings import Encoders
from engine.flow import Noise
from engine.presets import Preset
from engine.spec import Guidance, Spec
from engine.vace import build_dit
from tests.engine.conftest import TOY_PRESET, picture, random_dit, random_encoders
from training import lora
from training.grpo_config import GrpoConfig
from training.loop import LoopConfig
from training.policy import EnginePolicy, Task
from training.rewards.door import TOTAL
from training.rollout import RolloutConfig

PLAIN = replace(TOY_PRESET.dit, subject_layers=0, use_vlm=False)
PRESETS: dict[str, Preset] = {
    "identity": TOY_PRESET,
    "phantom": replace(
        TOY_PRESET, family="phantom", dit=PLAIN, reference_width=0, reference_height=0
    ),
    "vace": replace(
        TOY_PRESET, family="vace", reference_width=0, reference_height=0,
        dit=replace(PLAIN, vace_layers=(0, 2), vace_in_dim=2 * 16 + 4 * 4),
    ),
}  # fmt: skip
OFF, ON = Guidance(scale=1.0), Guidance(scale=2.5)
COLOURS = ((200, 30, 30), (20, 40, 220), (30, 160, 40))


@cache
def encoders(family: str) -> Encoders:
    made = random_encoders()
    return made if family == "identity" else replace(made, vlm=None)


def policy(family: str = "identity", guidance: Guidance = OFF, **given: Any) -> EnginePolicy:
    return EnginePolicy(encoders(family), PRESETS[family], guidance, **given)


@cache
def tasks(family: str = "identity", subjects: tuple[int, ...] = (2, 2, 2)) -> tuple[Task, ...]:
    """One for each number of subjects: all say the same words of other pictures."""
    names = ("anna", "bob", "cleo")
    encoder = Encoder(encoders(family), PRESETS[family], "toy", None)
    made = []
    for place, num in enumerate(subjects):
        spec = Spec.of(PRESETS[family], " and ".join(f"@{n}" for n in names[:num]), names[:num])
        cast = [picture(n, COLOURS[(place + k) % 3]) for k, n in enumerate(names[:num])]
        made.append(Task.of(spec, cast, encoder))
    return tuple(made)


def model(family: str = "identity", rank: int = 4) -> nn.Module:
    """With fresh adapters; 0: all weights are trained."""
    dit = random_dit(PRESETS[family].dit)
    if family == "vace":
        torch.manual_seed(0)
        dit = build_dit(PRESETS[family].dit).eval()
        for parameter in dit.parameters():
            nn.init.normal_(parameter, std=0.1)
    dit.requires_grad_(True)
    if rank:
        torch.manual_seed(1)
        lora.add(dit, rank)
    return dit


def brightness(frames_BTHWC: Tensor, samples: Sequence[Task]) -> dict[str, Tensor]:
    assert frames_BTHWC.dtype == torch.uint8 and len(frames_BTHWC) == len(samples)
    return {TOTAL: frames_BTHWC.double().mean((1, 2, 3, 4)) / 255}


LOOP = LoopConfig(
    "toy_dit", steps=2, lr=1e-3, muon_lr=None, warmup=1, schedule="constant", ema=0.5, bf16=False,
    sheet_every=0, log_every=1,
)  # fmt: skip


def config(**changes: Any) -> GrpoConfig:
    """Two updates on an epoch of four groups of two, three noisy steps of four."""
    loop, rollout = changes.pop("loop", LOOP), changes.pop("rollout", {})
    given = {"group_size": 2, "groups": 2, "updates": 2, "rows": 4}
    noise = Noise("exact", 0.7)
    return GrpoConfig(loop, RolloutConfig(4, **({"noise": noise} | rollout)), **(given | changes))
