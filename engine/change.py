"""A tensor's later change, beside it in the same file: few numbers, each one step up or down.

    value = as the file has it + step * q,  q in {-1, 0, 1}

    NAME.change       U8: one byte per number that is not 0: how many zeros lie before it, times
                      two, plus 1 where it is -1; 254 stands for 127 zeros and no number
    NAME.change_step  F32 [1]: the step

So a new version of a model is the old file and a short addition: git keeps the bytes that both have
once, and what cannot read the addition refuses the file. `engine.delta` is for adapters, which
travel without their base.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.errors import CheckpointError

CHANGE, CHANGE_STEP = ".change", ".change_step"
_FAR = 127  # zeros that one byte can pass over
_SKIP = 2 * _FAR


def nearest(difference: Tensor, threshold: float) -> Tensor:
    """The difference with what is small left out and the rest made equal: step * q, of its shape.

    threshold: in root mean squares of the difference; what is nearer to 0 than half of it becomes
    0. The step is the mean size of what is left, which makes the squared error least.
    """
    size = difference.abs()
    kept = size > 0.5 * threshold * difference.square().mean().sqrt()
    step = (size * kept).sum() / kept.sum().clamp(min=1)
    return step * kept * difference.sign()


def changes(name: str, difference: Tensor, threshold: float) -> dict[str, Tensor]:
    """The entries beside tensor `name` that add `nearest` of the difference; none where that is 0
    throughout. Raises CheckpointError."""
    if not bool(difference.isfinite().all()):
        raise CheckpointError(f"{name}: the difference holds numbers that are not finite")
    near = nearest(difference.detach().float(), threshold).flatten()
    where = near.nonzero()[:, 0]
    if not len(where):
        return {}
    before = torch.diff(where, prepend=where.new_tensor([-1])) - 1
    skips = before // _FAR
    code = torch.full((int(skips.sum()) + len(where),), _SKIP, dtype=torch.uint8)
    code[(skips + 1).cumsum(0) - 1] = (before % _FAR * 2 + (near[where] < 0)).to(torch.uint8)
    return {name + CHANGE: code, name + CHANGE_STEP: near.abs().max().view(1)}


def without_changes(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file as it was before its first change."""
    return {n: x for n, x in entries.items() if not n.endswith((CHANGE, CHANGE_STEP))}


def changed(value: Tensor, code: Tensor | None, step: Tensor | None, label: str) -> Tensor:
    """A tensor with its change, fp32. label: file and tensor. Raises CheckpointError."""
    if code is None or step is None:
        raise CheckpointError(f"{label}: a change and its step go together, one is missing")
    if code.dtype != torch.uint8 or code.ndim != 1 or step.numel() != 1:
        raise CheckpointError(f"{label}: a change is a row of bytes and one step")
    if not 0 < float(step) < float("inf"):
        raise CheckpointError(f"{label}: the step of a change must be a positive number")
    # Each byte moves on by one number at least: a longer row is not even widened.
    if code.numel() > value.numel():
        raise CheckpointError(f"{label}: the change is for a tensor of another size")
    skip = code == _SKIP
    there = torch.where(skip, _FAR, (code >> 1).long() + 1).cumsum(0)[~skip] - 1
    if bool((code > _SKIP).any()) or (len(there) and int(there[-1]) >= value.numel()):
        raise CheckpointError(f"{label}: the change is for a tensor of another size")
    sign = 1.0 - 2.0 * (code[~skip] & 1).float()
    flat = value.float().flatten().index_add(0, there, sign * float(step))
    return flat.view(value.shape)
