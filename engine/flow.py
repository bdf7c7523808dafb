"""Time, once. Every line of arithmetic with t stands in this file.

    t in [0, 1]; t = 1 is noise, t = 0 is the clean latent
    x_t = (1 - t) x0 + t eps           the straight path
    v   = dx/dt = eps - x0             what the DiT predicts; x0 = x_t - t v, eps = x_t + (1 - t) v
    the DiT's door multiplies t by 1000

Same as Wan, FLUX.2, DiffSynth and diffusers' flow schedulers (there t is called sigma); opposite
to `flow_matching` and lucidrains, where t = 1 is data.

A `Schedule` is the table of times of one run, indexed by step number. Nothing ever looks a time up
by equality, so a table may hold any values.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NUM_TRAIN_TIMES = 1000  # Wan numbers its noise levels 0..999
NOISES = ("exact", "id_crafter", "identity_grpo", "constant")
MOST_NOISE = 0.7  # an SDE step draws at most this share of the noise that belongs at its end


class Schedule(NamedTuple):
    """The times of one run.

    times: fp64 [n + 1], falling from (about) 1 to exactly 0.
    door: fp64 [n], the times that the model is told; differs from `times[:-1]` only where the
        upstream sampler rounds (Wan truncates 1000 t to a whole number).
    solver: "euler" or "unipc".
    """

    times: Tensor
    door: Tensor
    solver: str

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1


class History(NamedTuple):
    """What UniPC remembers between steps: predictions of x0, newest last, and where it stood."""

    x0s: tuple[Tensor, ...] = ()
    last: Tensor | None = None


class Noise(NamedTuple):
    """How much noise SDE steps draw: a schedule of `NOISES` and its factor `level` = a.

    exact          c = a sqrt(t (t - s) / (1 - s)), a step of its own kind, see `kernel`
    id_crafter     g = a sqrt(t / (1 - t))       ID-Crafter equation 4, Flow-GRPO
    identity_grpo  g = a t                       Identity-GRPO equation 10, with a = 1
    constant       g = a                         DanceGRPO, with a of .25 to .3

    c: standard deviation of a step from t to s; g: of the SDE, whose steps have c = g sqrt(t - s).
    """

    name: str = "exact"
    level: float = 0.7


class Kernel(NamedTuple):
    """A step's law: N(x * x_t + v * v_t, std^2) in every element."""

    x: float
    v: float
    std: float


class SdeStep(NamedTuple):
    """One SDE step. x_next has no gradient; mean has v's; log_prob_B fp64 [B] under the step's law,
    or [B, F] of each frame by itself, None where it draws no noise."""

    x_next: Tensor
    mean: Tensor
    std: float
    log_prob_B: Tensor | None


def add_noise(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t on the straight path. `t` is a scalar or one time per row of x0."""
    t = _per_row(t, x0)
    return (1 - t) * x0 + t * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """What the DiT is trained to predict, for every t."""
    return eps - x0


def predict_x0(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """The clean latent that velocity `v` at x_t points to."""
    return x - _per_row(t, x) * v


def velocity_to(x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """The velocity at x_t that points to the clean latent `x0`; inverse of `predict_x0`."""
    return (x - x0) / _per_row(t, x)


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Moves times towards noise by `shift` >= 1 (SD3 equation 23; Wan's sample_shift)."""
    return shift * t / (1 + (shift - 1) * t)


def times(num_steps: int, shift: float) -> Tensor:
    """Even times from 1 to 0, shifted: fp64 [num_steps + 1]."""
    assert num_steps >= 1 and shift > 0
    return shift_times(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift)


def wan_unipc_times(num_steps: int, shift: float) -> Tensor:
    """The table of Wan's FlowUniPC: starts at float32(0.999), is rounded to float32, ends at 0.

    Source: Wan2.1 `wan/utils/fm_solvers_unipc.py` set_timesteps. fp64 [num_steps + 1] whose values
    are float32 numbers.
    """
    assert num_steps >= 1 and shift > 0
    first = float(torch.tensor(0.999, dtype=torch.float32))
    even = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64)
    return shift_times(even, shift).float().double()


def schedule(solver: str, num_steps: int, shift: float) -> Schedule:
    """The table for a solver by name: "euler" (exact times) or "unipc" (Wan's own table)."""
    if solver == "euler":
        table = times(num_steps, shift)
        return Schedule(table, table[:-1], solver)
    assert solver == "unipc", solver
    first = float(torch.tensor(0.999, dtype=torch.float32))
    even = torch.linspace(first, 0, num_steps + 1, dtype=torch.float64)[:-1]
    # Wan truncates before it rounds the table to float32.
    door = (shift_times(even, shift) * NUM_TRAIN_TIMES).floor() / NUM_TRAIN_TIMES
    return Schedule(wan_unipc_times(num_steps, shift), door, solver)


def step(
    plan: Schedule, index: int, x: Tensor, v: Tensor, history: History
) -> tuple[Tensor, History]:
    """From x at times[index] to x at times[index + 1], by the plan's solver. Pure."""
    if plan.solver == "euler":
        return euler_step(x, v, float(plan.times[index]), float(plan.times[index + 1])), history
    return unipc_step(plan.times, index, x, v, history)


def euler_step(x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
    """One Euler step along v."""
    return x + (t_next - t) * v


def sde_step(
    x: Tensor,
    v: Tensor,
    t: float,
    t_next: float,
    noise: Noise,
    x_next: Tensor | None = None,
    draw: Callable[[Tensor], Tensor] = torch.randn_like,
    leading: int = 0,
    by_frame: bool = False,
) -> SdeStep:
    """From x at t to x_next at t_next with noise, in fp32. Draws x_next, or scores a given one.

    Args:
        x_next: where an earlier call of this step arrived; None draws it.
        draw: standard normal noise of the shape of its argument.
        leading: frames in front (dimension 2) that are dropped in the end: they do not count in
            the log-probability.
        by_frame: the log-probability of each frame (dimension 2) instead of the whole row's, which
            is their mean.
    """
    assert x.dtype in (torch.float32, torch.float64), "half precision would change the ratios"
    law = kernel(noise, t, t_next)
    v = v.to(x.dtype)
    if law.std == 0:
        mean = euler_step(x, v, t, t_next)
        return SdeStep(mean.detach() if x_next is None else x_next, mean, 0.0, None)
    mean = law.x * x + law.v * v
    if x_next is None:
        x_next = mean + law.std * draw(mean)
    x_next = x_next.detach()
    kept = (x_next[:, :, leading:], mean[:, :, leading:]) if leading else (x_next, mean)
    if not by_frame:
        return SdeStep(x_next, mean, law.std, log_prob(*kept, law.std))
    there, meant = (part.movedim(2, 1) for part in kept)
    each = log_prob(there.flatten(0, 1), meant.flatten(0, 1), law.std)
    return SdeStep(x_next, mean, law.std, each.unflatten(0, there.shape[:2]))


def log_prob(x_next: Tensor, mean: Tensor, std: float) -> Tensor:
    """log N(x_next; mean, std^2) of each row, the mean over its elements: fp64 [B].

    The mean, as all published code has it, and not the sum: the likelihood to the power of one over
    the number of elements. fp64, for a policy moves it by 1e-6 and less per update.
    """
    scaled = ((x_next - mean) / std).double().flatten(1)
    return -0.5 * scaled.square().mean(1) - math.log(std) - 0.5 * math.log(2 * math.pi)


def noise_std(noise: Noise, t: float, t_next: float) -> float:
    """Standard deviation of the noise in a step: bounded at every t, t = 1 too, and zero at the
    last step, where t_next = 0. By one bound instead of exceptions: an Euler step with more noise
    than belongs at its end leaves the path, whatever t is (docs/decisions.md)."""
    return min(math.sqrt(_variance(noise, t, t_next)), MOST_NOISE * t_next)


def _variance(noise: Noise, t: float, t_next: float) -> float:
    """Of the step's noise, by the schedule alone; may be infinite."""
    a, way = noise.level, t - t_next
    if noise.name == "exact":
        return a * a * t * way / (1 - t_next)
    if noise.name == "id_crafter":
        return a * a * t * way / (1 - t) if t < 1 else math.inf
    if noise.name == "identity_grpo":
        return a * a * t * t * way
    if noise.name == "constant":
        return a * a * way
    raise ValueError(f"noise {noise.name!r} is unknown; there are {', '.join(NOISES)}")


def kernel(noise: Noise, t: float, t_next: float) -> Kernel:
    """The law of a step from t down to t_next.

    "exact" goes along the ODE below t_next and comes back by the path's own noising: with
    r = sqrt(t_next^2 - std^2) the mean is (1 - t_next) x0 + r eps, for the x0 and eps that v points
    to. Any std < t_next leaves the path's spread as it is. (The form is CPS's, arXiv 2509.05952;
    its noise does not vanish with the step, ours does.)

    The others are Euler steps of the reverse SDE with the path's marginals, ID-Crafter equation 4:
    x + [v + g^2 / (2 t) (x + (1 - t) v)] (t_next - t), with g^2 = std^2 / (t - t_next).
    """
    std = noise_std(noise, t, t_next)
    if noise.name == "exact":
        r = math.sqrt(t_next**2 - std**2)
        return Kernel(1 - t_next + r, r * (1 - t) - (1 - t_next) * t, std)
    pull = std**2 / (2 * t)
    return Kernel(1 - pull, t_next - t - pull * (1 - t), std)


def unipc_step(
    table: Tensor, index: int, x: Tensor, v: Tensor, history: History
) -> tuple[Tensor, History]:
    """UniPC-2, B(h) = expm1(h), predicting x0, as Wan samples (arXiv 2302.04867, algorithm 1).

    Corrects x by what the model said there, then predicts the next x. The order is 1 at the first
    and at the last step. Equal to diffusers' UniPCMultistepScheduler(use_flow_sigmas=True,
    solver_order=2, solver_type="bh2") on the same table, to float32 rounding.

    Returns:
        x at table[index + 1], and the history for the next call.
    """
    num_steps = len(table) - 1
    now = [float(t) for t in table]
    x0 = x - now[index] * v
    # A run that enters later than at the first step has as little memory there as one at the first.
    if history.last is not None:
        order = min(2, num_steps - index + 1, len(history.x0s))
        x = _unipc_correct(now, index, order, x0, history)
    x0s = (*history.x0s[-1:], x0)
    x_next = _unipc_predict(now, index, min(2, num_steps - index, len(x0s)), x, x0s)
    return x_next, History(x0s, x)


def _unipc_predict(
    now: list[float], index: int, order: int, x: Tensor, x0s: tuple[Tensor, ...]
) -> Tensor:
    """UniP: extrapolates from index to index + 1; x0s are the predictions at index - 1, index."""
    t, t_next = now[index], now[index + 1]
    h = _log_snr(t_next) - _log_snr(t)
    rise = math.expm1(-h)
    x_next = (t_next / t) * x - (1 - t_next) * rise * x0s[-1]
    if order == 2:
        ratio = (_log_snr(now[index - 1]) - _log_snr(t)) / h
        slope = (x0s[-2] - x0s[-1]) / ratio
        x_next = x_next - (1 - t_next) * rise * 0.5 * slope
    return x_next


def _unipc_correct(
    now: list[float], index: int, order: int, x0: Tensor, history: History
) -> Tensor:
    """UniC: repeats the last step, now that x0 at its end is known."""
    assert history.last is not None
    t_from, t = now[index - 1], now[index]
    h = _log_snr(t) - _log_snr(t_from)
    rise = math.expm1(-h)
    base = history.x0s[-1]
    x = (t / t_from) * history.last - (1 - t) * rise * base
    if order == 1:
        return x - (1 - t) * rise * 0.5 * (x0 - base)
    ratio = (_log_snr(now[index - 2]) - _log_snr(t_from)) / h
    # The two weights solve [[1, 1], [ratio, 1]] w = [b1, b2], equation 8 of the paper.
    phi = rise / -h - 1
    b1 = phi / rise
    b2 = 2 * (phi / -h - 0.5) / rise
    w1 = (b1 - b2) / (1 - ratio)
    slope = (history.x0s[-2] - base) / ratio
    return x - (1 - t) * rise * (w1 * slope + (b1 - w1) * (x0 - base))


def sample_t(
    num: int,
    generator: torch.Generator,
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 1.0,
) -> Tensor:
    """Times to train at: logit-normal (SD3 section 3.1), then shifted. fp32 [num] in (0, 1)."""
    normal = torch.randn(num, generator=generator)
    return shift_times(torch.sigmoid(mean + std * normal), shift)


def _log_snr(t: float) -> float:
    """log((1 - t) / t), infinite at t = 0."""
    return math.inf if t == 0 else math.log1p(-t) - math.log(t)


def _per_row(t: Tensor, x: Tensor) -> Tensor:
    """Lets one time per row broadcast over the rest of x, in x's precision."""
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t.to(x.dtype)
