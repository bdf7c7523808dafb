"""Small differences between two models: levels of a step per row, entropy-coded.

    row r of a tensor      tuned_r = base_r + scale_r * q_r,   q in {-h ... h},  levels = 2 h + 1
    quantised with         q_r = clip(round(d_r / (c * rms_r))), scale_r = <d, q> / <q, q>,
                           d = tuned - base before quantising, rms its root mean square

The larger c, the more levels are zero and the smaller the file; `encode` takes the smallest c that
fits. What `apply` gives is exact: the base as fp32, one product and one sum per number, each
rounded once, so that it has the same bits on every machine and a digest of its own.

    delta.safetensors   levels U8: as many digits per byte as fit, deflated; all tensors by name,
                        without the rows whose scale is 0
                        scales U8: the rows' scales (bf16), high bytes before low ones, deflated
                        header "delta", JSON: format, levels, base, tuned (digests of the tensors)
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from engine.errors import CheckpointError
from engine.weights import opened

FORMAT = 1
LEVELS = (3, 5, 7)
# A row's scale keeps this many of bf16's bits: the rest is lost in the rounding of the levels.
SCALE_MASK = -16
CLIP = 1.7  # of a row's root mean square: where the levels end, at least
WIDEST = 6.0  # times the root mean square: beyond it next to nothing would be left
ROOM = 1_000  # for the header


def encode(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], max_bytes: int, levels: int = 5
) -> bytes:
    """The file, of at most `max_bytes`.

    Args:
        base, tuned: tensors of the same names and shapes; they count as fp32.
        levels: 3, 5 or 7.

    Raises:
        CheckpointError: names or shapes differ, or so few bytes are not enough for the scales.
    """
    if levels not in LEVELS:
        raise CheckpointError(f"a delta has 3, 5 or 7 levels, not {levels}")
    if {n: x.shape for n, x in base.items()} != {n: x.shape for n, x in tuned.items()}:
        raise CheckpointError("a delta is between models of the same names and shapes")
    names = sorted(base)
    own = [_rows(base[name].detach().cpu().float()) for name in names]
    changes = [
        _rows(tuned[name].detach().cpu().float()) - rows
        for name, rows in zip(names, own, strict=True)
    ]
    parts = _fitting(changes, levels, max_bytes - ROOM)
    given = {
        name: (rows + scale_R[:, None] * level_RC).view_as(base[name])
        for name, rows, (level_RC, scale_R) in zip(names, own, parts, strict=True)
    }
    told = {"format": FORMAT, "levels": levels, "base": digest(base), "tuned": digest(given)}
    # One entry: safetensors writes several in an order of chance, and equal deltas are equal files.
    return save(_packed(parts, levels), {"delta": json.dumps(told)})


def apply(base: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tuned tensors, fp32.

    Raises:
        CheckpointError: the file is damaged, or was made for another base, or does not give what
            it says that it gives.
    """
    with opened(path) as file:
        told = _told(file)
        if told is None:
            raise CheckpointError(f"{path.name} is no delta of format {FORMAT}")
        packed, scales = file.get_tensor("levels"), file.get_tensor("scales")
    levels = told["levels"]
    if digest(base) != told.get("base"):
        raise CheckpointError(f"{path.name} is a delta of another base")
    own = {name: _rows(base[name].cpu().float()) for name in sorted(base)}
    num_rows = [len(rows) for rows in own.values()]
    scales_R = _from_planes(_unzip(scales, 2 * sum(num_rows), path.name)).split(num_rows)
    counts = [int((s != 0).sum()) * x.shape[1] for s, x in zip(scales_R, own.values(), strict=True)]
    size = -(-sum(counts) // _per_byte(levels))
    level_L = _unpack(_unzip(packed, size, path.name), levels)[: sum(counts)]
    tuned = {}
    for (name, rows), scale_R, level_l in zip(
        own.items(), scales_R, level_L.split(counts), strict=True
    ):
        change = torch.zeros_like(rows)
        change[scale_R != 0] = level_l.view(-1, rows.shape[1]).float()
        tuned[name] = (rows + scale_R[:, None] * change).view_as(base[name])
    if digest(tuned) != told.get("tuned"):
        raise CheckpointError(f"{path.name} does not give the tensors that it was made for")
    return tuned


def _told(file: Any) -> dict[str, Any] | None:
    """The header; None where it is not a delta's."""
    try:
        told = json.loads((file.metadata() or {})["delta"])
        fits = told["format"] == FORMAT and told["levels"] in LEVELS
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    names = set(file.keys())
    bytes_alone = names == {"levels", "scales"} and all(
        file.get_slice(name).get_dtype() == "U8" for name in names
    )
    return told if fits and bytes_alone else None


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256, in hex, of names, shapes and numbers as fp32."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        hashed.update(f"{name}{tuple(tensors[name].shape)}".encode())
        hashed.update(tensors[name].detach().cpu().float().contiguous().numpy().data)
    return hashed.hexdigest()


Parts = list[tuple[Tensor, Tensor]]  # of each tensor levels [R, C] as fp32 and scales [R]


def _fitting(changes: list[Tensor], levels: int, max_bytes: int) -> Parts:
    """With the smallest c for which they fit, to a thousandth or so. Raises CheckpointError."""
    low, high = 2 * CLIP / (levels - 1), WIDEST
    found: Parts = []
    for c in (low, high):
        found = [_quantised(d_RC, levels, c) for d_RC in changes]
        if _size(found, levels) <= max_bytes:
            break
    else:
        raise CheckpointError(f"a delta of {len(changes)} tensors needs over {max_bytes} bytes")
    while c != low and high / low > 1.001:
        middle = (low * high) ** 0.5
        tried = [_quantised(d_RC, levels, middle) for d_RC in changes]
        if _size(tried, levels) <= max_bytes:
            found, high = tried, middle
        else:
            low = middle
    return found


def _packed(parts: Parts, levels: int) -> dict[str, Tensor]:
    kept = [level_RC[scale_R != 0].flatten() for level_RC, scale_R in parts]
    return {
        "levels": _zip(_pack(torch.cat(kept), levels)),
        "scales": _zip(_planes(torch.cat([scale_R for _, scale_R in parts]))),
    }


def _size(parts: Parts, levels: int) -> int:
    return sum(len(data) for data in _packed(parts, levels).values())


def _rows(tensor: Tensor) -> Tensor:
    """[R, C]: a matrix's outputs, and a vector as one row."""
    return tensor.reshape(tensor.shape[0] if tensor.ndim > 1 else 1, -1)


def _quantised(d_RC: Tensor, levels: int, c: float) -> tuple[Tensor, Tensor]:
    """Levels [R, C] as fp32 and the scales [R] that fit them best, as `_planes` keeps them."""
    half = (levels - 1) // 2
    step_R1 = c * d_RC.square().mean(1, keepdim=True).sqrt()
    q_RC = torch.where(step_R1 > 0, d_RC / step_R1, 0.0).round().clamp(-half, half)
    q_RC = q_RC + 0.0  # no zero has a sign: none has one when it is read back
    scale_R = (d_RC * q_RC).sum(1) / q_RC.square().sum(1).clamp(min=1)
    return q_RC, _from_planes(_planes(scale_R))


def _planes(scale_R: Tensor) -> Tensor:
    """uint8 [2 R]: all high bytes, then all low ones, so that like stands beside like."""
    bits = scale_R.bfloat16().view(torch.int16) & SCALE_MASK
    return torch.cat([(bits >> 8) & 255, bits & 255]).to(torch.uint8)


def _from_planes(planes: Tensor) -> Tensor:
    high, low = planes.to(torch.int16).chunk(2)
    scale_R = (((high << 8) | low).view(torch.bfloat16)).float()
    if not bool(scale_R.isfinite().all()):
        raise CheckpointError("a delta's scales are not finite")
    return scale_R


def _per_byte(levels: int) -> int:
    count = 1
    while levels ** (count + 1) <= 256:
        count += 1
    return count


def _pack(level_L: Tensor, levels: int) -> Tensor:
    count, half = _per_byte(levels), (levels - 1) // 2
    padded = torch.full((-(-len(level_L) // count) * count,), half, dtype=torch.int64)
    padded[: len(level_L)] += level_L.long()
    weights = levels ** torch.arange(count)
    return (padded.view(-1, count) * weights).sum(1).to(torch.uint8)


def _unpack(packed: Tensor, levels: int) -> Tensor:
    weights = levels ** torch.arange(_per_byte(levels))
    digits = packed.long()[:, None] // weights % levels
    return (digits - (levels - 1) // 2).to(torch.int8).flatten()


def _zip(data: Tensor) -> Tensor:
    # Digits of noise repeat nothing; codes by frequency alone are shorter, and quick.
    packer = zlib.compressobj(9, strategy=zlib.Z_HUFFMAN_ONLY)
    content = packer.compress(data.numpy().tobytes()) + packer.flush()
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _unzip(data: Tensor, size: int, label: str) -> Tensor:
    """No more is unpacked than belongs there. Raises CheckpointError."""
    packer = zlib.decompressobj()
    try:
        content = packer.decompress(data.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise CheckpointError(f"{label} is damaged: {error}") from error
    if len(content) != size or not packer.eof:
        raise CheckpointError(f"{label} is for a model of another size")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
