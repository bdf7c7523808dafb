"""Wan's decoder as a stream: latent frames in, pixels out as they come, in tiles if need be.

Legend: B batch, C channels, F latent frames, T frames, H W latent cells.

The decoder is causal: it reads one latent frame, gives 1 frame for the first and 4 for each later
one, and remembers the last two inputs of every convolution (diffusers' `AutoencoderKLWan._decode`
and its feat_cache, from Wan2.1 `wan/modules/vae.py`). Here that memory belongs to one stream.

It falls into two parts. The head, with its attention over the whole frame, works on latent cells
and needs a fortieth of the memory. In the tail, a pixel depends on the `reach` cells around its own
and on no others. So all tiles share one head, and each tile's tail reads `reach` cells more on
every side and drops what becomes of them: the numbers are those of the whole frame, no seam can
show, and nothing is blended. Tiles that wait for their turn do so in the host's memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.errors import BackendError
from engine.presets import VAEConfig

# Latent frames that a tile decodes in its turn, for which its memory is moved in and out once.
TURN = 4


class Side(NamedTuple):
    """A tile along one side, in cells: it reads [start, stop) and makes pixels of [low, high)."""

    start: int
    low: int
    high: int
    stop: int

    @property
    def read(self) -> slice:
        return slice(self.start, self.stop)

    def kept(self, scale: int) -> slice:
        """Of the tile's own pixels."""
        return slice((self.low - self.start) * scale, (self.high - self.start) * scale)

    def place(self, scale: int) -> slice:
        """In the frame's pixels."""
        return slice(self.low * scale, self.high * scale)


Tile = tuple[Side, Side]


class Memory(defaultdict[int, Any]):
    """What one part of the decoder remembers: by number of the convolution, its last inputs.

    diffusers' layers read None where there is nothing yet; they write tensors and the word "Rep".
    """

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def move(self, device: torch.device | str) -> None:
        """To a device, in place."""
        for number, value in self.items():
            if isinstance(value, Tensor):
                self[number] = value.to(device)


def stream(
    model: Any,
    z_BCFHW: Tensor,
    raw: Callable[[Tensor], Tensor],
    config: VAEConfig,
    max_cells: int = 0,
) -> Iterator[Tensor]:
    """Pixels in [-1, 1] of each latent frame, [B, 3, 1 or 4, H * s, W * s], in the model's dtype.

    Args:
        model: an AutoencoderKLWan; nothing of the stream is kept on it.
        raw: makes what the decoder reads of a latent frame.
        max_cells: see `grid`.
    """
    height, width = z_BCFHW.shape[-2:]
    tiles = grid(height, width, reach(config), max_cells)
    memory, memories = Memory(), [Memory() for _ in tiles]
    frames = z_BCFHW.split(1, dim=2)
    turn = TURN if len(tiles) > 1 else 1
    for start in range(0, len(frames), turn):
        features = [_head(model, raw(z), memory) for z in frames[start : start + turn]]
        yield from _in_tiles(model, features, tiles, memories, start == 0)


def grid(height: int, width: int, reach: int, max_cells: int = 0) -> list[Tile]:
    """Tiles of a frame of latent cells: of all grids with tiles small enough, the least work.

    Args:
        reach: what a tile reads beyond its own on every side, up to the frame's edge.
        max_cells: the most that a tile may read; 0: as many as there are.

    Raises:
        BackendError: no tile is as small as that.
    """
    limit = max_cells or height * width
    cuts = [[_cut(size, num, reach) for num in range(1, size + 1)] for size in (height, width)]
    pairs = [(a, b) for a, b in product(*cuts) if a.most * b.most <= limit]
    if not pairs:
        least = min(a.most * b.most for a, b in product(*cuts))
        raise BackendError(
            f"tile={max_cells}: tiles of so few latent cells are too small for the VAE's decoder,"
            f" which reads {reach} beyond each side: give it {least} or more"
        )
    rows, columns = min(pairs, key=lambda pair: pair[0].total * pair[1].total)
    return list(product(rows.sides, columns.sides))


def work(tiles: Sequence[Tile]) -> int:
    """Cells that the tails of all tiles read."""
    return sum((a.stop - a.start) * (b.stop - b.start) for a, b in tiles)


def reach(config: VAEConfig) -> int:
    """Cells on every side of its own that a pixel depends on, counted back from the last layer.

    Each residual block has two convolutions over three pixels, each doubling one behind it.
    """
    pixels = 1
    for level in reversed(range(len(config.dim_mult))):
        pixels += 2 * (config.num_res_blocks + 1)
        if level:
            pixels = -(-(pixels + 1) // 2)
    return pixels


class _Cut(NamedTuple):
    """One way to cut a side. most, total: cells that a part, and all parts, read."""

    sides: tuple[Side, ...]
    most: int
    total: int


def _cut(size: int, num: int, reach: int) -> _Cut:
    edges = [size * number // num for number in range(num + 1)]
    sides = tuple(
        Side(max(low - reach, 0), low, high, min(high + reach, size))
        for low, high in pairwise(edges)
    )
    reads = [side.stop - side.start for side in sides]
    return _Cut(sides, max(reads), sum(reads))


def _in_tiles(
    model: Any,
    features: Sequence[Tensor],
    tiles: Sequence[Tile],
    memories: Sequence[Memory],
    is_first: bool,
) -> list[Tensor]:
    """Pixels of the latent frames of one turn. is_first: the video begins with them."""
    frames: list[Tensor] = []
    height, width = features[0].shape[-2:]
    for (rows, columns), memory in zip(tiles, memories, strict=True):
        memory.move(features[0].device)
        for number, x in enumerate(features):
            part = _tail(model, x[..., rows.read, columns.read], memory, is_first and not number)
            scale = part.shape[-1] // (columns.stop - columns.start)
            if number == len(frames):
                size = (height * scale, width * scale)
                frames.append(part.new_empty(*part.shape[:3], *size))
            kept = part[..., rows.kept(scale), columns.kept(scale)]
            frames[number][..., rows.place(scale), columns.place(scale)] = kept
        if len(tiles) > 1:
            memory.move("cpu")
    return frames


def _head(model: Any, z: Tensor, memory: Memory) -> Tensor:
    """Features [B, C, 1, H, W] of a latent frame."""
    decoder, index = model.decoder, [0]
    x = _convolve(decoder.conv_in, model.post_quant_conv(z), memory, index)
    features: Tensor = decoder.mid_block(x, feat_cache=memory, feat_idx=index)
    return features


def _tail(model: Any, x: Tensor, memory: Memory, is_first: bool) -> Tensor:
    """Pixels of features, [B, 3, 1 if is_first else 4, H * s, W * s]."""
    decoder, index = model.decoder, [0]
    for block in decoder.up_blocks:
        x = block(x, feat_cache=memory, feat_idx=index, first_chunk=is_first)
    x = decoder.nonlinearity(decoder.norm_out(x))
    return _convolve(decoder.conv_out, x, memory, index).clamp(-1, 1)


def _convolve(conv: Any, x: Tensor, memory: Memory, index: list[int]) -> Tensor:
    """A causal convolution over three frames that remembers the last two it read."""
    before, last = memory[index[0]], x[:, :, -2:]
    if before is not None and last.shape[2] < 2:
        last = torch.cat([before[:, :, -1:], last], dim=2)
    y: Tensor = conv(x, before)
    memory[index[0]] = last.clone()  # a view would keep all of x
    index[0] += 1
    return y
