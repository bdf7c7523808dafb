"""Flow-GRPO: groups of rollouts, a reward, and updates towards each group's better half.

    samples ─▶ rollouts ─▶ reward ─▶ advantages ─▶ `updates` optimizer steps ─▶ and again
               └─ one epoch, `training.grpo_epochs` ─┘

It runs on `training.loop`: a batch is a part of an epoch's rollouts at one step of the window.
Model and optimizer are saved after every update.

Legend: B rollouts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.flow import SdeStep
from training import dist
from training.grpo_config import GrpoConfig
from training.grpo_epochs import Part, Rollouts
from training.grpo_loss import ClipWatch, clip_range, gaussian_kl, surrogate
from training.loop import EvalFn, ExportFn, Outcome, SheetFn
from training.loop import run as run_loop
from training.reference import Reference
from training.rewards.door import Reward
from training.rollout import Policy, replay


@dataclass
class Objective:
    """The loss of a part of an epoch's rollouts, as `training.loop` asks for it."""

    config: GrpoConfig
    policy: Policy
    reference: Reference
    watch: ClipWatch = field(default_factory=ClipWatch)

    def __call__(self, model: nn.Module, part: Part) -> dict[str, Tensor]:
        config, trajectory, device = self.config, part.trajectory, self.config.loop.device
        model.eval()  # as it was in the rollout: dropout would be another policy
        reference = None
        if config.beta:
            with self.reference.standing_in(model):
                at = self.policy.velocity(model, part.samples)
                reference = replay(at, trajectory, part.place, device).mean
        made = replay(self.policy.velocity(model, part.samples), trajectory, part.place, device)
        assert made.log_prob_B is not None
        epsilon = clip_range(config.clip, trajectory.num_elements)
        old_B = trajectory.log_prob_KB[part.place].to(device)
        told = surrogate(made.log_prob_B, old_B, part.value_B.to(device), epsilon)
        weight_B = part.weight_B.to(device)
        loss, kl = (weight_B * told.loss_B).mean(), torch.zeros((), device=device)
        if reference is not None:
            kl_B = self._kl(made, reference, trajectory.leading)
            kl = (weight_B.view(len(kl_B), -1).mean(1) * kl_B).mean()
            loss = loss + config.beta * kl
        return {"loss": loss.float()} | self._figures(part, told.ratio_B, told.clipped_B, kl)

    def _kl(self, made: SdeStep, reference: Tensor, leading: int) -> Tensor:
        """[B], over what counts in the log-probability."""
        mean = made.mean
        if leading:
            mean, reference = mean[:, :, leading:], reference[:, :, leading:]
        return gaussian_kl(mean, reference, made.std)

    def _figures(
        self, part: Part, ratio_B: Tensor, clipped_B: Tensor, kl: Tensor
    ) -> dict[str, Tensor]:
        clipped = clipped_B.double().mean()
        self.watch.add(part.update, float(clipped), part.moved)
        figures = {
            "ratio": ratio_B.mean(),
            "ratio_off": (ratio_B - 1).abs().max(),
            "clipped": clipped,
            "kl": kl,
            # One of the trained steps in turn: the loop's mean over all parts makes it whole.
            f"clipped_{part.number}": clipped * self.config.num_trained,
        }
        told = {name: torch.tensor(value) for name, value in part.told.items()}
        # All on one device: processes average them in one message with the gradients.
        return {n: x.detach().float().to(kl.device) for n, x in (figures | told).items()}


def train(
    config: GrpoConfig,
    policy: Policy,
    reward: Reward,
    samples: Sequence[Any],
    model: nn.Module,
    folder: Path | None = None,
    *,
    sheet_fn: SheetFn | None = None,
    eval_fn: EvalFn | None = None,
    export_fn: ExportFn | None = None,
    shard: Callable[[nn.Module], object] | None = None,
) -> Outcome:
    """Trains what of `model` takes a gradient; the same call goes on after any interruption.

    Rollouts are the raw weights'; looked at, evaluated and exported is the moving average
    (`training.loop.run`). Under `dist.launch` the processes share the groups out.

    shard: see `training.loop.run`; alone, a process needs none.
    """
    group = dist.current()
    folder = folder or Path("runs") / config.loop.name
    group.same_weights_(tensor.detach() for tensor in model.parameters())
    reference, spread = Reference(), shard if group.size > 1 else None

    def sharded(module: nn.Module) -> None:
        assert spread is not None
        spread(module)
        if config.beta and module is model:
            reference.take(module)

    if config.beta and spread is None:
        reference.take(model.to(config.loop.device))
    rollouts = Rollouts(config, policy, reward, samples, model, folder, group)
    objective = Objective(config, policy, reference)
    return run_loop(
        config.for_loop(group.size), model, objective, rollouts.batch,
        sheet_fn=sheet_fn, eval_fn=eval_fn, export_fn=export_fn, folder=folder,
        shard=sharded if spread is not None else None,
    )  # fmt: skip
