"""The numbers of a GRPO run."""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.advantages import SPREADS
from training.loop import LoopConfig
from training.rollout import RolloutConfig


@dataclass(frozen=True)
class GrpoConfig:
    """loop: its accumulate, prefetch and save_every_s follow from what stands here.

    group_size: rollouts of a sample. groups: in an update, over all processes. updates: optimizer
    steps on the rollouts of one epoch; from the second on ratios differ from 1.
    rows: rollouts in a forward of an update. train_steps: so many steps of the window are trained,
    drawn anew for each epoch; 0 is all. keep: so many members of each group are trained, the best
    and the worst, an even number; 0 is all.
    clip: see `grpo_loss.clip_range`. beta: weight of the KL to the policy that the run began with.
    spread: see `advantages`.

    Raises:
        ValueError: naming the field that does not fit.
    """

    loop: LoopConfig
    rollout: RolloutConfig
    group_size: int = 8
    groups: int = 16
    updates: int = 1
    rows: int = 8
    train_steps: int = 0
    keep: int = 0
    clip: float = 0.3
    beta: float = 0.0
    spread: str = "group"

    def __post_init__(self) -> None:
        if self.spread not in SPREADS:
            raise ValueError(f"spread: {self.spread!r} is none of {', '.join(SPREADS)}")
        if self.keep % 2 or not 0 <= self.keep <= self.group_size:
            raise ValueError(f"keep: {self.keep} is not even, or not in 0 … {self.group_size}")
        if self.train_steps > self.num_recorded:
            raise ValueError(f"train_steps: the window has {self.num_recorded}")

    @property
    def num_recorded(self) -> int:
        return self.rollout.window or self.rollout.last

    @property
    def num_trained(self) -> int:
        return self.train_steps or self.num_recorded

    @property
    def num_kept(self) -> int:
        return self.keep or self.group_size

    def for_loop(self, num_processes: int) -> LoopConfig:
        """The loop's own numbers for this many processes.

        Raises:
            ValueError: groups or rows cannot be shared out evenly.
        """
        if self.groups % num_processes:
            raise ValueError(f"groups: {self.groups} do not go to {num_processes} processes")
        own = self.groups // num_processes * self.num_kept
        if own % self.rows:
            raise ValueError(f"rows: {self.rows} do not divide a process's {own} rollouts")
        accumulate = own // self.rows * self.num_trained
        return replace(self.loop, accumulate=accumulate, prefetch=0, save_every_s=0.0)
