"""Batches out of shards, as a function of the batch's number and nothing else.

A batch holds clips with one number of subjects (drawn by the batch's number, as frequent as in the
data), so that nothing is padded: a step with one subject costs a fraction of one with four. Runs
accumulate, or have several processes, to mix numbers within an update.

Legend: B batch, C channels, F H W latents, T text tokens or frames, S subjects, V VLM tokens.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from training.data.precompute import NULL
from training.data.shards import Table


class Batch(NamedTuple):
    """Clips with what the encoders made of them. boxes_BSTX: x0, y0, x1, y1 in px.

    vlm_mask_BV and subject_mask_BS are True where something is real.
    """

    x0_BCFHW: Tensor
    text_BTM: Tensor
    refs_BSCHW: Tensor
    tags_BSM: Tensor
    subject_mask_BS: Tensor
    vlm_BVM: Tensor
    vlm_mask_BV: Tensor
    boxes_BSTX: Tensor
    null_TM: Tensor


@dataclass(frozen=True)
class Dropout:
    """Probabilities with which conditions are taken away from a row of a batch.

    everything: text and subjects (the unconditional of single guidance). subjects: subjects and
    VLM. vlm: VLM tokens. text: text only (the image branch of dual guidance).
    """

    everything: float = 0.1
    subjects: float = 0.05
    vlm: float = 0.1
    text: float = 0.05


@dataclass
class Loader:
    """`batch(index)` over a growing set of shards.

    plan: (from batch index, shards in use) in rising order; a batch waits until the shards of its
    entry are on disk, so a run started early still is a function of its indices.
    mixed: all numbers of subjects in one batch, padded to the table's widths: one shape for every
      batch, which is what compiled code wants.
    alike: so many successive batches hold clips with one number of subjects: then the processes of
      a run, which take turns, have equally much to do in each step.
    """

    table: Table
    batch_size: int
    plan: Sequence[tuple[int, int]]
    seed: int = 0
    mixed: bool = False
    alike: int = 1
    patience_s: float = 3600.0

    def batch(self, index: int) -> Batch:
        num_shards = self.plan[bisect_right([p[0] for p in self.plan], index) - 1][1]
        self._wait(num_shards)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        leader = torch.Generator().manual_seed(self.seed * 1_000_003 + index // self.alike)
        return self._collate(self._draw(num_shards, generator, leader))

    def rows(self, indices: Sequence[int]) -> Batch:
        """These rows, in this order, of the shards that are open."""
        return self._collate(list(indices))

    def _wait(self, num_shards: int) -> None:
        deadline = time.monotonic() + self.patience_s
        while len(self.table.shards) < num_shards:
            if self.table.folder.num_ready(self.table.columns) >= num_shards:
                self.table.extend(num_shards)
                self._counts = self.table.num_subjects()
            elif time.monotonic() > deadline:
                raise FileNotFoundError(f"{self.table.folder.path}: shard {num_shards - 1} is late")
            else:
                time.sleep(1.0)

    @cached_property
    def null_TM(self) -> Tensor:
        return load_file(Path(self.table.folder.path) / NULL)["text"].float()

    def _draw(
        self, num_shards: int, generator: torch.Generator, leader: torch.Generator
    ) -> list[int]:
        """Row numbers of a batch; `leader` draws the clip whose number of subjects it takes."""
        num_rows = num_shards * self.table.folder.rows
        if self.mixed:
            pick = torch.randint(num_rows, (self.batch_size,), generator=generator)
            return [int(row) for row in pick]
        counts = self._counts[:num_rows]
        first = int(torch.randint(num_rows, (), generator=leader))
        same = (counts == counts[first]).nonzero()[:, 0]
        chosen = torch.randint(len(same), (self.batch_size,), generator=generator)
        return [int(row) for row in same[chosen]]

    def _collate(self, indices: list[int]) -> Batch:
        rows = [self.table.row(index) for index in indices]
        stacked = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        counts = stacked["num_subjects"]
        num = stacked["refs"].shape[1] if self.mixed else int(counts.max())
        lengths = stacked.get("num_vlm", torch.zeros(len(rows), dtype=torch.long))
        vlm = stacked.get("vlm", torch.zeros(len(rows), 0, 1))
        # Mixed batches keep the column's full width, the others what they need in steps of 16
        # tokens: few different shapes, for compiled code, and none that depends on what is open.
        width = vlm.shape[1] if self.mixed else -(-int(lengths.max()) // 16) * 16
        vlm = vlm[:, :width].float()
        return Batch(
            x0_BCFHW=stacked["latents"].float(),
            text_BTM=stacked["text"].float(),
            refs_BSCHW=stacked["refs"][:, :num].float(),
            tags_BSM=stacked["tags"][:, :num].float(),
            subject_mask_BS=torch.arange(num)[None] < counts[:, None],
            vlm_BVM=vlm,
            vlm_mask_BV=torch.arange(vlm.shape[1])[None] < lengths[:, None],
            boxes_BSTX=stacked["boxes"][:, :num].float(),
            null_TM=self.null_TM,
        )


def drop_conditions(batch: Batch, dropout: Dropout) -> Batch:
    """Takes conditions from random rows; at most one kind from each (torch's global generator)."""
    draw_B = torch.rand(len(batch.text_BTM))
    bounds = torch.tensor([dropout.everything, dropout.subjects, dropout.vlm, dropout.text])
    kind_B = torch.searchsorted(bounds.cumsum(0), draw_B, right=True)
    no_text = (kind_B == 0) | (kind_B == 3)
    no_subjects = kind_B <= 1
    return batch._replace(
        text_BTM=torch.where(no_text[:, None, None], batch.null_TM, batch.text_BTM),
        subject_mask_BS=batch.subject_mask_BS & ~no_subjects[:, None],
        vlm_mask_BV=batch.vlm_mask_BV & ~(kind_B <= 2)[:, None],
    )
