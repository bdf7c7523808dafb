"""Rollouts: the engine's own sampler, with noise inside a window of steps, recorded and replayed.

    seeds ─▶ policy.sample(model, …, solve=Recorder) ─▶ latents ─▶ frames ─▶ reward
                              │
                              ▼ states inside the window, their log-probabilities
             replay(policy.velocity(model, …), trajectory, k) ─▶ the same step, scored with gradient

Recording and replaying call one function, `flow.sde_step`, on one velocity; there is no second
sampler. All draws are functions of (seed, group, member), whatever process makes them.

Legend: K steps of the window, B rollouts; latents stand for [C, F, H, W], as X. Where credit is
given by frame, log_prob_KB is [K, B, F].
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from engine import flow
from engine.flow import Noise
from engine.sample import Solve, Step

At = Callable[[Tensor, float], Tensor]  # the guided velocity of x_BX at a time


class Policy(Protocol):
    """How a model makes latents of samples, and what velocity it says of them on the way.

    Both are under the same guidance. A sample is what a group is asked for; here it is opaque.
    """

    def sample(
        self,
        model: nn.Module,
        samples: Sequence[Any],
        seeds: Sequence[int],
        plan: flow.Schedule,
        solve: Solve,
        resume: Step | None = None,
    ) -> Tensor:
        """Latents [B, X] of B rollouts, each from the noise of its seed, or on from `resume`."""
        ...

    def velocity(self, model: nn.Module, samples: Sequence[Any]) -> At:
        """The velocity that `sample` follows, of these rows, with gradient."""
        ...

    def frames(self, model: nn.Module, latents: Tensor) -> Tensor:
        """What the reward reads, uint8 [B, F, H, W, 3]."""
        ...

    def leading(self, samples: Sequence[Any]) -> int:
        """Latent frames in front that are dropped in the end (`families.num_leading`)."""
        ...


@dataclass(frozen=True)
class RolloutConfig:
    """steps: of the denoising; shift: of their times. noise: of steps inside the window.

    window: that many successive steps draw noise, the others follow the ODE; 0 is all but the last.
    reach: windows end at most here, counted in steps; 0 is the last but one.
    same_noise: all members of a group start from the same noise.
    branch: what they have in common, up to the window, is computed once; needs same_noise.
    solver: whose table of times, see `flow.schedule`; the steps are Euler's.
    by_frame: a latent frame's noise is learned from by what the reward says of that frame, and not
    by what it says of the video (docs/decisions.md).

    Raises:
        ValueError: naming the field that does not fit.
    """

    steps: int
    shift: float = 1.0
    noise: Noise = field(default_factory=Noise)
    window: int = 0
    reach: int = 0
    same_noise: bool = False
    branch: bool = False
    solver: str = "euler"
    by_frame: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.reach < self.steps:
            raise ValueError(f"reach: {self.reach} is not below steps = {self.steps}")
        if not 0 <= self.window <= self.last:
            raise ValueError(f"window: {self.window} steps do not go into {self.last}")
        if self.branch and not self.same_noise:
            raise ValueError("branch: members have nothing in common without same_noise")

    @property
    def last(self) -> int:
        """Steps from here on draw no noise."""
        return self.reach or self.steps - 1

    def plan(self) -> flow.Schedule:
        """The table of times, for Euler steps."""
        return flow.schedule(self.solver, self.steps, self.shift)._replace(solver="euler")


def seed_of(*parts: int | str) -> int:
    """A seed for what these parts name, in [0, 2^63)."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def window(config: RolloutConfig, *parts: int | str) -> range:
    """The steps that draw noise, for all groups of a draw that these parts name."""
    length = config.window or config.last
    places = config.last - length + 1
    first = seed_of(*parts, "window") % places
    return range(first, first + length)


class Trajectory(NamedTuple):
    """What rollouts went through inside the window: enough to score it again at any time.

    states_KBX: fp32 [K + 1, B, X], before the window's first step and after each of its steps.
    log_prob_KB: fp64, under the policy that drew them. plan: the table that they were drawn with.
    first: number of the window's first step.
    """

    states_KBX: Tensor
    log_prob_KB: Tensor
    plan: flow.Schedule
    first: int
    noise: Noise
    leading: int = 0
    by_frame: bool = False

    def rows(self, places: Tensor | slice) -> Trajectory:
        """Only these rollouts."""
        states, log_prob = self.states_KBX[:, places], self.log_prob_KB[:, places]
        return self._replace(states_KBX=states, log_prob_KB=log_prob)

    @property
    def num_parts(self) -> int:
        """Latent frames that have a log-probability of their own."""
        return self.states_KBX.shape[3] - self.leading

    @property
    def num_elements(self) -> int:
        """Of one rollout's state, or of one of its frames: as far as they count in one
        log-probability."""
        state = self.states_KBX[0, 0]
        if self.by_frame:
            return state[:, 0].numel()
        return state[:, self.leading :].numel() if self.leading else state.numel()


class Recorder:
    """A `Solve` for one call of the sampler: Euler steps, inside the window SDE steps, which it
    keeps. seeds: of each row's noise."""

    def __init__(
        self,
        steps: range,
        noise: Noise,
        seeds: Sequence[int] = (),
        leading: int = 0,
        by_frame: bool = False,
    ) -> None:
        self.steps = steps
        self.noise = noise
        self.leading = leading
        self.by_frame = by_frame
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.states: list[Tensor] = []
        self.log_probs: list[Tensor] = []

    def __call__(
        self, plan: flow.Schedule, index: int, x: Tensor, v: Tensor, history: flow.History
    ) -> tuple[Tensor, flow.History]:
        t, t_next = float(plan.times[index]), float(plan.times[index + 1])
        if index not in self.steps:
            return flow.euler_step(x, v, t, t_next), history
        made = flow.sde_step(
            x, v, t, t_next, self.noise, draw=self._draw, leading=self.leading,
            by_frame=self.by_frame,
        )  # fmt: skip
        assert made.log_prob_B is not None, "the last step has no noise to record"
        if not self.states:
            self.states.append(x.cpu())
        self.states.append(made.x_next.cpu())
        self.log_probs.append(made.log_prob_B.cpu())
        return made.x_next, history

    def _draw(self, mean: Tensor) -> Tensor:
        # On the CPU and row by row: alike on every device and in every company.
        rows = [torch.randn(mean.shape[1:], generator=g) for g in self.generators]
        return torch.stack(rows).to(mean)

    def trajectory(self, plan: flow.Schedule) -> Trajectory:
        """What was recorded under this plan."""
        states, log_probs = torch.stack(self.states), torch.stack(self.log_probs)
        return Trajectory(
            states, log_probs, plan, self.steps.start, self.noise, self.leading, self.by_frame
        )


class Member(NamedTuple):
    """One rollout to make. group: its number over the whole run; sample: what it is asked for."""

    sample: Any
    group: int
    number: int


@torch.no_grad()
def play(
    policy: Policy,
    model: nn.Module,
    members: Sequence[Member],
    config: RolloutConfig,
    steps: range,
    seed: int,
) -> tuple[Tensor, Trajectory]:
    """Latents and trajectory of these members, in one batch. `steps`: the window."""
    samples, plan = [member.sample for member in members], config.plan()
    starts = [_start_seed(config, seed, member) for member in members]
    draws = [seed_of(seed, member.group, member.number, "steps") for member in members]
    leading = policy.leading(samples)
    recorder = Recorder(steps, config.noise, draws, leading, config.by_frame)
    resume = None
    if config.branch and steps.start:
        if leading:
            raise ValueError("branch: not where latent frames stand in front (the family vace)")
        resume = _stem(policy, model, members, starts, plan, steps.start, config.noise)
    latents = policy.sample(model, samples, starts, plan, recorder, resume)
    return latents, recorder.trajectory(plan)


def _start_seed(config: RolloutConfig, seed: int, member: Member) -> int:
    number = 0 if config.same_noise else member.number
    return seed_of(seed, member.group, number, "start")


def _stem(
    policy: Policy,
    model: nn.Module,
    members: Sequence[Member],
    starts: Sequence[int],
    plan: flow.Schedule,
    num_steps: int,
    noise: Noise,
) -> Step:
    """The first steps, once for each group, and then the state for all of its members."""
    firsts = {member.group: place for place, member in reversed(list(enumerate(members)))}
    samples = [members[place].sample for place in firsts.values()]
    seeds = [starts[place] for place in firsts.values()]
    short = flow.Schedule(plan.times[: num_steps + 1], plan.door[:num_steps], plan.solver)
    x = policy.sample(model, samples, seeds, short, Recorder(range(0), noise))
    row = {group: number for number, group in enumerate(firsts)}
    spread = x[[row[member.group] for member in members]]
    return Step(num_steps, plan.num_steps, spread, flow.History())


def replay(at: At, trajectory: Trajectory, k: int, device: str = "cpu") -> flow.SdeStep:
    """The recorded step `k` of the window again, under the policy behind `at`, with gradient."""
    index, plan = trajectory.first + k, trajectory.plan
    x, x_next = (state.to(device) for state in trajectory.states_KBX[k : k + 2])
    v = at(x, float(plan.door[index]))
    t, t_next = float(plan.times[index]), float(plan.times[index + 1])
    return flow.sde_step(
        x, v, t, t_next, trajectory.noise, x_next,
        leading=trajectory.leading, by_frame=trajectory.by_frame,
    )  # fmt: skip
