"""The denoising loop. Pure: everything it needs is an argument, everything it makes is returned.

Legend: B batch, C channels, F H W latent frames, height, width.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine import flow
from engine.dit import Condition
from engine.spec import Guidance

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
# The velocities at x and t under each of these conditions.
Each = Callable[[Velocity, Tensor, Tensor, Sequence[Condition]], Sequence[Tensor]]
# What becomes of a guess of the clip: (x0 [B, C, F, H, W], the x that it was made of, its time t,
# the time that the transformer was told) to x0, the very same where nothing is changed.
Move = Callable[[Tensor, Tensor, float, float], Tensor]
# A step by its number, as `flow.step` takes it: (plan, index, x, v, history) to x and history.
Solve = Callable[
    [flow.Schedule, int, Tensor, Tensor, flow.History], tuple[Tensor, flow.History]
]


class Conditions(NamedTuple):
    """What guidance weighs against each other.

    full: prompt and subjects. empty: negative prompt, no subjects. image: negative prompt and
    subjects, for dual guidance only; None where there are no subjects, for then it is `empty`.
    text: prompt, no subjects, for `subject_scale` only; None where there are none, as it is `full`.
    """

    full: Condition
    empty: Condition | None = None
    image: Condition | None = None
    text: Condition | None = None


class Source(NamedTuple):
    """A known clip that a run starts from (`engine.edit`).

    x0_BCFHW: its clean latents. first: the step at which the run enters. mask_BCFHW: 1 where
    something new is made, C may be 1; None is everywhere.
    """

    x0_BCFHW: Tensor
    first: int
    mask_BCFHW: Tensor | None = None

    def steer(self, v: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The velocity, pointing at the known latents where nothing new is made."""
        if self.mask_BCFHW is None:
            return v
        return torch.lerp(flow.velocity_to(x, self.x0_BCFHW, t), v, self.mask_BCFHW)

    def behind(self, frames_BCFHW: Tensor) -> "Source":
        """The same with these latents in front in time, where everything is made anew."""
        mask = self.mask_BCFHW
        if mask is not None:
            shape = (len(mask), mask.shape[1], frames_BCFHW.shape[2], *mask.shape[3:])
            mask = torch.cat([mask.new_ones(shape), mask], dim=2)
        return Source(torch.cat([frames_BCFHW, self.x0_BCFHW], dim=2), self.first, mask)

    def to(self, device: torch.device) -> "Source":
        """The same on another device."""
        mask = None if self.mask_BCFHW is None else self.mask_BCFHW.to(device)
        return Source(self.x0_BCFHW.to(device), self.first, mask)


class Step(NamedTuple):
    """Where a run stands after `done` of `num_steps` steps; hand it back to go on from there.

    x: latents at times[done]. history: the solver's memory. x0: where the last velocity pointed, to
    be looked at; nothing goes on from it, so a step that was stored has none.
    """

    done: int
    num_steps: int
    x: Tensor
    history: flow.History
    x0: Tensor | None = None


def one_by_one(
    velocity: Velocity, x: Tensor, t_B: Tensor, conditions: Sequence[Condition]
) -> Sequence[Tensor]:
    """Every forward of guidance in this process, in order."""
    return [velocity(x, t_B, condition) for condition in conditions]


def sample(
    velocity: Velocity,
    noise_BCFHW: Tensor,
    conditions: Conditions,
    plan: flow.Schedule,
    guidance: Guidance,
    on_step: Callable[[Step], None] | None = None,
    resume: Step | None = None,
    source: Source | None = None,
    each: Each = one_by_one,
    solve: Solve = flow.step,
    move: Move | None = None,
) -> Tensor:
    """Latents [B, C, F, H, W] from noise or a noisy `source`, or on from `resume`, to the same
    bits.

    `on_step` is called after every step and may raise to stop. `each` computes the forwards of a
    step; `solve` makes the step, and may record it. `move` changes where the velocity points.
    """
    x, history, first = noise_BCFHW, flow.History(), 0
    if source is not None:
        first = source.first
        x = flow.add_noise(source.x0_BCFHW, noise_BCFHW, plan.times[first])
    if resume is not None:
        x, history, first = resume.x, resume.history, resume.done
    for index in range(first, plan.num_steps):
        told = float(plan.door[index])
        v = guide(velocity, x, told, conditions, guidance, each)
        if move is not None:
            v = _moved(move, x, v, plan.times[index], told)
        if source is not None:
            v = source.steer(v, x, plan.times[index])
        x0 = flow.predict_x0(x, v, plan.times[index])
        x, history = solve(plan, index, x, v, history)
        if on_step is not None:
            on_step(Step(index + 1, plan.num_steps, x, history, x0))
    return x


def _moved(move: Move, x: Tensor, v: Tensor, t: Tensor, told: float) -> Tensor:
    """The velocity that points at what `move` makes of where `v` points; the same bits where it
    leaves that alone."""
    x0 = flow.predict_x0(x, v, t)
    moved = move(x0, x, float(t), told)
    return v if moved is x0 else flow.velocity_to(x, moved, t)


def guide(
    velocity: Velocity,
    x: Tensor,
    t: float,
    conditions: Conditions,
    guidance: Guidance,
    each: Each = one_by_one,
) -> Tensor:
    """The velocity under guidance; conditions whose weight is zero are not evaluated."""
    t_B = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
    names = guidance.weighed if guidance.covers(t) else ("full",)
    known = conditions._asdict()
    weighed = {name: known[name] for name in names if known[name] is not None}
    made = dict(zip(weighed, each(velocity, x, t_B, list(weighed.values())), strict=True))
    v = full = made["full"]
    if "empty" in made:
        empty, image = made["empty"], made.get("image", made["empty"])
        if guidance.mode == "dual":
            way = guidance.image_scale * (image - empty)
            return empty + way + guidance.text_scale * (full - image)
        v = empty + guidance.scale * (full - empty)
    return v + guidance.subject_scale * (full - made["text"]) if "text" in made else v
