"""A tensor's later change, beside it in the same file, to a bit or two per number.

    value = as the file has it + step * q,  q a whole number in -7 .. 7

    NAME.change       U8: raw deflate (RFC 1951) of bytes that hold two numbers each,
                      q + 7 + 15 * (next q + 7); an odd end is filled up with q = 0
    NAME.change_step  F32 [1]: the step

So a new version of a model is the old file and a short addition: git keeps the bytes that both have
once, and what cannot read the addition refuses the file. A step as wide as 1.6 root mean squares of
the change takes 1.5 bits for a number and leaves a sixth of the change's square undone; a code of
Huffman's alone, without repeats, is within a fiftieth of the entropy. `engine.delta` is for
adapters, which travel without their base.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from engine.errors import CheckpointError

CHANGE, CHANGE_STEP = ".change", ".change_step"
SMALL = 20_000
"""Tensors of fewer numbers are changed in steps of a quarter: all together they cost nothing."""
_MOST = 7
LEVELS = 2 * _MOST + 1
_RAW = -15  # deflate without a header, window of 32 KiB


def step_of(tensor: Tensor, spacing: float) -> Tensor:
    """`spacing` root mean squares of a tensor, a quarter of that where it is `SMALL`: []."""
    wide = spacing if tensor.numel() >= SMALL else spacing / 4
    return wide * tensor.square().mean().sqrt()


def quantised(difference: Tensor, spacing: float) -> tuple[Tensor, Tensor]:
    """(q, step) of the difference, fp32, q of its shape.

    spacing: width of a step in root mean squares of the difference. What lies further out than 7
    of them becomes 7. The step is then set to make the squared error least.
    """
    step = step_of(difference, spacing)
    q = torch.round(difference / step).clamp(-_MOST, _MOST).nan_to_num(0.0)
    return q, (difference * q).sum() / q.square().sum().clamp(min=1)


def nearest(difference: Tensor, spacing: float) -> Tensor:
    """What a file can hold of the difference: step * q, of its shape. spacing: see `quantised`."""
    q, step = quantised(difference, spacing)
    return step * q


def changes(name: str, difference: Tensor, spacing: float) -> dict[str, Tensor]:
    """The entries beside tensor `name` that add `nearest` of the difference; none where that is 0
    throughout. Raises CheckpointError."""
    if not bool(difference.isfinite().all()):
        raise CheckpointError(f"{name}: the difference holds numbers that are not finite")
    q, step = quantised(difference.detach().float(), spacing)
    return coded(name, q, step) if bool(q.any()) else {}


def coded(name: str, q: Tensor, step: Tensor) -> dict[str, Tensor]:
    """The entries beside tensor `name` that add step * q, q whole numbers in -7 .. 7."""
    digits = (q.flatten() + _MOST).to(torch.uint8).numpy()
    digits = np.pad(digits, (0, len(digits) % 2), constant_values=_MOST)
    pairs = digits[0::2] + LEVELS * digits[1::2]
    coder = zlib.compressobj(9, zlib.DEFLATED, _RAW, 9, zlib.Z_HUFFMAN_ONLY)
    code = coder.compress(pairs.tobytes()) + coder.flush()
    entry = torch.frombuffer(bytearray(code), dtype=torch.uint8)
    return {name + CHANGE: entry, name + CHANGE_STEP: step.view(1)}


def without_changes(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a file as it was before its first change."""
    return {n: x for n, x in entries.items() if not n.endswith((CHANGE, CHANGE_STEP))}


def changed(value: Tensor, code: Tensor | None, step: Tensor | None, label: str) -> Tensor:
    """A tensor with its change, fp32. label: file and tensor. Raises CheckpointError."""
    if code is None or step is None:
        raise CheckpointError(f"{label}: a change and its step go together, one is missing")
    one = step.numel() == 1 and step.dtype == torch.float32
    if code.dtype != torch.uint8 or code.ndim != 1 or not one:
        raise CheckpointError(f"{label}: a change is a row of bytes and one step")
    if not 0 < float(step) < float("inf"):
        raise CheckpointError(f"{label}: the step of a change must be a positive number")
    num = value.numel()
    pairs = np.frombuffer(_inflated(code, (num + 1) // 2, label), np.uint8)
    digits = np.stack([pairs % LEVELS, pairs // LEVELS], 1).ravel()
    if digits.max(initial=0) >= LEVELS or (digits[num:] != _MOST).any():
        raise CheckpointError(f"{label}: the change holds numbers that are none")
    q = torch.from_numpy(digits[:num].astype(np.float32) - _MOST).view(value.shape)
    return value.float() + float(step) * q.to(value.device)


def _inflated(code: Tensor, size: int, label: str) -> bytes:
    """These bytes, which must be so many: no more are ever made. Raises CheckpointError."""
    coder = zlib.decompressobj(_RAW)
    try:
        data = coder.decompress(code.cpu().numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise CheckpointError(f"{label}: the change is damaged: {error}") from error
    if len(data) != size or not coder.eof or coder.unused_data:
        raise CheckpointError(f"{label}: the change is for a tensor of another size")
    return data
