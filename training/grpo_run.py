"""A GRPO run over a model folder: its transformer learns, everything else of it stays.

    folder ─▶ Engine ─▶ adapters on its DiT ─▶ `training.grpo` ─▶ dit.safetensors, lora.safetensors

What the recipes of all sizes share. They differ in numbers, in the reward and in whom the requests
are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn

from engine.pipeline import Engine
from engine.spec import Guidance
from training import dist, lora, sft
from training.grpo import train
from training.grpo_config import GrpoConfig
from training.heldout import Watch
from training.loop import Outcome
from training.policy import EnginePolicy, Task
from training.rewards.door import Reward


@dataclass(frozen=True)
class GrpoRun:
    """config: of the run. rank, alpha: of the adapters, whose product is scaled by alpha / rank;
    rank 0 trains all weights. guidance: of rollouts and of their replay; detach, decoded: see
    `training.policy.EnginePolicy`. fsdp: weights, gradients, moments and average in slices over the
    processes (`training.dist.shard`), for what no card holds whole.

    Raises:
        ValueError: credit by frame, of frames that are not decoded; fsdp of adapters or with Muon.
    """

    config: GrpoConfig
    rank: int = 32
    alpha: float = 32
    guidance: Guidance = field(default_factory=lambda: Guidance(scale=1.0))
    detach: bool = True
    decoded: int = 0
    fsdp: bool = False

    def __post_init__(self) -> None:
        if self.fsdp and (self.rank or self.config.loop.muon_lr is not None):
            raise ValueError("fsdp: is of all weights by AdamW, so rank must be 0, muon_lr None")
        if self.decoded and self.config.rollout.by_frame:
            raise ValueError("decoded: under by_frame every frame is rewarded, so it must be 0")


def learn(
    run: GrpoRun,
    engine: Engine,
    reward: Reward,
    tasks: Sequence[Task],
    folder: Path,
    watch: Watch | None = None,
) -> Outcome:
    """Trains the engine's transformer in place; the same call goes on after an interruption.

    Leaves dit.safetensors in `folder`, with adapters merged, and these as lora.safetensors.

    watch: looks at held-out casts before the run, at every sheet and at its end.

    Raises:
        ValueError: a watch of weights in slices.
    """
    if run.fsdp and watch is not None:
        raise ValueError("watch: not of weights in slices; look at what the run exports")
    # Slices go to the cards one by one: whole, and with its average, it would not fit.
    model = prepared(run, engine.dit.cpu() if run.fsdp else engine.dit)
    policy = EnginePolicy(
        engine.encoders, engine.preset, run.guidance, run.detach, run.decoded
    )
    if watch is not None:
        watch.begin(model)
    return train(
        run.config, policy, reward, tasks, model, folder,
        sheet_fn=None if watch is None else watch.sheet,
        eval_fn=None if watch is None else watch.look,
        export_fn=partial(sft.export, adapters=run.rank > 0),
        shard=partial(_spread, bf16=run.config.loop.bf16) if run.fsdp else None,
    )  # fmt: skip


def _spread(model: nn.Module, bf16: bool) -> None:
    dist.shard(model, dist.large_parts(model), bf16)


def prepared(run: GrpoRun, model: nn.Module) -> nn.Module:
    """The model with fresh adapters, or all of it unfrozen."""
    if run.rank == 0:
        return model.requires_grad_(True)
    torch.manual_seed(run.config.loop.seed)
    lora.add(model, run.rank, run.alpha)
    for parameter in model.parameters():
        if parameter.requires_grad:  # beside weights in bf16 too: a step is less than they can tell
            parameter.data = parameter.data.float()
    return model
