"""Guesses: what a generator sees in noisy clips of the shards, for readers that guide it.

    a clip, noise to time t ─ transformer, every second time without the references ─▶ x_t - t v

A reader that only knows true clips takes the blur of a guess for a factor. Kept beside the shards,
in `guess-00003.safetensors`, with the digest of the transformer that made them.

Legend: R rows of a shard, D draws of a clip, C latent channels, F H W latent frames, height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

import torch
from torch import Tensor

from engine import flow
from engine.dit import WanDiT
from training.data.loader import Loader
from training.data.shards import ShardFolder, Table, read_header
from training.latent_reader import Examples
from training.sft import subject_inputs

COLUMN = "guess"
DRAWS = 2
EARLIEST, LATEST = 0.98, 0.2
BATCH = 8


@dataclass(frozen=True)
class Guessed(Examples):
    """Characters in guesses of a table's clips, a draw of each by lot."""

    def latents(self, row: int, frame: int) -> Tensor:
        """Of one latent frame, [C, H, W]."""
        draws_DCFHW = self.table.row(row)[COLUMN]
        return draws_DCFHW[int(torch.randint(len(draws_DCFHW), ())), :, frame]


def guessed(true: Examples) -> Guessed:
    """Everybody who can be seen in these true clips, in guesses of them."""
    table = Table(true.table.folder, (COLUMN,))
    table.extend(len(true.table.shards))
    return Guessed(table, true.row_N, true.frame_N, true.boxes_NX, true.factors_NF)


def write(
    folder: ShardFolder,
    columns: Sequence[str],
    dit: WanDiT,
    weights: str,
    num_shards: int,
    tell: Callable[[str], None] = lambda line: None,
) -> int:
    """Makes the guesses of the first shards that are missing, or another transformer's; returns
    how many files it wrote.

    Args:
        columns: of the folder, what the transformer is shown. weights: digest of the transformer.
    """
    shown = (read_header(folder.file(name, 0))["weights"] for name in columns)
    weights = "-".join([weights, *shown])  # other encoders, other guesses
    missing = [n for n in range(num_shards) if not folder.has(COLUMN, n, weights)]
    if not missing:
        return 0
    table = Table(folder, tuple(columns))
    table.extend(num_shards)
    loader = Loader(table, BATCH, ((0, num_shards),), mixed=True)
    for number in missing:
        begun = monotonic()
        guesses_RDCFHW = of_shard(loader, dit, number)
        folder.write(COLUMN, number, {COLUMN: guesses_RDCFHW.bfloat16()}, weights)
        rate = folder.rows / (monotonic() - begun)
        tell(f"guesses of shard {number} of {num_shards}: {rate:.1f} clips/s")
    return len(missing)


@torch.no_grad()
def of_shard(loader: Loader, dit: WanDiT, shard: int) -> Tensor:
    """Guesses of all its rows [R, D, C, F, H, W], a function of the shard's number."""
    dice = torch.Generator().manual_seed(shard)
    rows = loader.table.folder.rows
    parts = []
    for start in range(shard * rows, (shard + 1) * rows, BATCH):
        batch = loader.rows(range(start, min(start + BATCH, (shard + 1) * rows)))
        x0 = batch.x0_BCFHW
        draws = []
        for draw in range(DRAWS):
            t_B = LATEST + (EARLIEST - LATEST) * torch.rand(len(x0), generator=dice).double()
            x_t = flow.add_noise(x0, torch.randn(x0.shape, generator=dice), t_B)
            shown = subject_inputs(batch) if draw % 2 == 0 else None
            with torch.autocast("cpu", torch.bfloat16):
                v = dit(x_t, t_B, batch.text_BTM, shown)
            draws.append(flow.predict_x0(x_t, v.float(), t_B))
        parts.append(torch.stack(draws, 1))
    return torch.cat(parts)
