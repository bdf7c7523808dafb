"""How many requests share a forward. Together small ones take less than one after another, until
the processor is busy: from there on (`Preset.knee`, tokens in a forward) more company gains nothing
and takes memory.

What a request becomes does not depend on its company, but for the order in which products are
summed: its latents by 3e-5 at most on the miniature in fp32 (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from engine.dit import Condition, WanDiT
from engine.presets import Preset
from engine.sample import Velocity
from engine.spec import Spec


def tokens(preset: Preset, shape: tuple[int, int, int, int], num_subjects: int) -> int:
    """Video tokens of one request in a forward. shape: of its latents, see `latent_shape`."""
    _, frames, height, width = shape
    if preset.family != "identity":
        frames += num_subjects
    return frames * height * width // math.prod(preset.dit.patch)


def room(
    preset: Preset, shape: tuple[int, int, int, int], num_subjects: int, tier: str = "exact"
) -> int:
    """How many such requests go in one forward: up to the knee, but one where the tier is lossy,
    for each decides by its own past what to skip."""
    return max(1, preset.knee // tokens(preset, shape, num_subjects)) if tier == "exact" else 1


def alike(spec: Spec) -> Hashable:
    """What requests must have in common to share their forwards."""
    shape = spec.width, spec.height, spec.num_frames, len(spec.names)
    return *shape, spec.steps, spec.solver, spec.guidance, spec.tier


def groups(preset: Preset, specs: Sequence[Spec]) -> list[list[int]]:
    """Numbers of the requests that go together; the groups in the order of their first."""
    found: list[list[int]] = []
    open_groups: dict[Hashable, list[int]] = {}
    for number, spec in enumerate(specs):
        shape = preset.latent_shape(spec.width, spec.height, spec.num_frames)
        group = open_groups.get(alike(spec))
        if group is None or len(group) == room(preset, shape, len(spec.names), spec.tier):
            group = open_groups[alike(spec)] = []
            found.append(group)
        group.append(number)
    return found


def limited(velocity: Velocity, rows: int) -> Velocity:
    """The velocity of a batch of any size in forwards of at most `rows` rows, of even sizes.

    It belongs to one run and keeps the parts of that run's conditions: a part is the same object
    at every step, as the lossy tiers need it (`engine.tiers`).
    """
    kept: dict[int, tuple[Condition, list[Condition]]] = {}

    def parts(condition: Condition, num_rows: int, size: int) -> list[Condition]:
        if id(condition) not in kept:
            starts = range(0, num_rows, size)
            kept[id(condition)] = condition, [condition.rows(a, a + size) for a in starts]
        return kept[id(condition)][1]

    def in_parts(x_BCFHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        num_rows = len(x_BCFHW)
        if num_rows <= rows:
            return velocity(x_BCFHW, t_B, condition)
        size = _even(num_rows, rows)
        given = zip(
            x_BCFHW.split(size), t_B.split(size), parts(condition, num_rows, size), strict=True
        )
        return torch.cat([velocity(*each) for each in given])

    return in_parts


def pullback(
    dit: WanDiT, device: torch.device, condition: Condition, rows: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """J^T of the eager velocity under this condition, (x, times [B], a gradient by v) to one by x,
    fp32, with the graphs of at most `rows` rows at a time; None where a weight of the transformer
    does not lie on the device."""
    if any(parameter.device != device for parameter in dit.parameters()):
        return None

    def pull(x_BCFHW: Tensor, t_B: Tensor, gradient_BCFHW: Tensor) -> Tensor:
        size = _even(len(x_BCFHW), rows)
        pulled: list[Tensor] = []
        for start in range(0, len(x_BCFHW), size):
            stop = start + size
            with torch.enable_grad():
                x = x_BCFHW[start:stop].detach().requires_grad_()
                v = dit.denoise(x, t_B[start:stop], condition.rows(start, stop))
                pulled += torch.autograd.grad(v, x, gradient_BCFHW[start:stop].to(v.dtype))
        return torch.cat(pulled).float()

    return pull


def _even(num_rows: int, most: int) -> int:
    """Rows of each forward but the last, which may have fewer: as few forwards of at most `most` as
    will do, none larger than that needs."""
    return math.ceil(num_rows / math.ceil(num_rows / most))
