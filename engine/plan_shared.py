"""What a plan takes when several cards share it (`engine.parallel`): the busiest card's time, and
what every card sends.

Seconds count no waiting for exchanges: how much of it hides nobody here has measured.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace

from engine.errors import SpecError
from engine.families import num_leading
from engine.parallel import Parallel
from engine.plan import Plan, Stage
from engine.presets import Preset
from engine.spec import Spec

# Which forward of guidance a stage is; the first where it is none of these.
NUMBERS = {"denoising: negative prompt": 1, "denoising: subjects alone": 2}
BF16 = 2


@dataclass(frozen=True)
class SharedPlan:
    """expected_s: of the busiest card. sent_bytes: by it, for self-attention in all steps."""

    parallel: Parallel
    expected_s: float
    sent_bytes: float


def share(found: Plan, preset: Preset, spec: Spec, cards: int) -> SharedPlan:
    """The plan over `cards`: as many as can share the forwards do, and the rest their tokens.

    Raises:
        SpecError: that many cards cannot share it; the field is `cards`.
    """
    forwards = sum(map(bool, found.options["off" if spec.guidance.is_off else spec.guidance.mode]))
    cfg = max((n for n in range(1, forwards + 1) if cards % n == 0), default=1)
    parallel, heads = Parallel(cfg, cards // cfg), preset.dit.num_heads
    if not 1 <= parallel.sequence <= heads:
        raise SpecError("cards", f"{cards} would share {heads} heads; at most {cfg * heads} can")
    seconds, runs = [0.0] * cfg, [0] * cfg
    for stage in found.stages:
        if stage.name.startswith("denoising"):
            owner = min(NUMBERS.get(stage.name, 0), cfg - 1)
            seconds[owner] += _part(stage, parallel.sequence, heads).seconds(found.card)
            runs[owner] += stage.runs
    alone = sum(s.seconds(found.card) for s in found.stages if not s.name.startswith("denoising"))
    sent = max(runs) * sent_in_a_forward(preset, spec, parallel.sequence)
    return SharedPlan(parallel, alone + max(seconds), sent)


def sent_in_a_forward(preset: Preset, spec: Spec, sequence: int) -> float:
    """Bytes that a card sends for self-attention: q, k, v and the result of its tokens, in bf16,
    without its own share of the heads."""
    config = preset.dit
    _, frames, *sides = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    frames += num_leading(preset.family, len(spec.names))
    frames += len(spec.names) if preset.family == "phantom" else 0
    tokens = frames * math.prod(sides) / math.prod(config.patch)
    blocks = config.num_layers + len(config.vace_layers)
    return blocks * 4 * BF16 * config.dim * tokens * (sequence - 1) / sequence**2


def _part(stage: Stage, sequence: int, heads: int) -> Stage:
    """What the card with the most heads does of it."""
    most = math.ceil(heads / sequence) / heads
    flops = Counter(
        {kind: math.ceil(n * (most if kind == "attention" else 1 / sequence))
         for kind, n in stage.cost.flops.items()}
    )  # fmt: skip
    return replace(stage, cost=replace(stage.cost, flops=flops))
