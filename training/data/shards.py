"""Precomputed encodings on disk: columns of a table of clips, in files of a few hundred rows.

    folder/video-00003.safetensors   latents, boxes
    folder/refs-00003.safetensors    reference latents, number of subjects
    folder/text-00003.safetensors    text features, tags
    folder/vlm-00003.safetensors     VLM tokens, their number

Row r of shard i is clip number first + i * rows + r of a split, which the world makes from its
number, so columns can be written at different times, by several processes, and one can be renewed
when its encoder was. Each file appears whole or not at all and says which weights made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from training.state import write_safetensors
from training.world.clip import Clip, sample_clip

COLUMNS = ("video", "refs", "text", "vlm")


@dataclass(frozen=True)
class ShardFolder:
    """Where the table lies. `rows` per shard; `split` and `reference` as in `sample_clip`.

    height, width, reference_size: px of the clips and of the references.
    still: one frame of each clip instead of all. first: the number of the first clip.
    """

    path: Path
    rows: int = 256
    split: str = "train"
    reference: str = "cross"
    height: int = 64
    width: int = 96
    reference_size: int = 64
    still: bool = False
    first: int = 0

    def file(self, column: str, shard: int) -> Path:
        return self.path / f"{column}-{shard:05d}.safetensors"

    def seeds(self, shard: int) -> range:
        """Clip numbers of a shard."""
        start = self.first + shard * self.rows
        return range(start, start + self.rows)

    def clip(self, number: int) -> Clip:
        return sample_clip(
            number,
            split=self.split,
            reference=self.reference,
            height=self.height,
            width=self.width,
            reference_size=self.reference_size,
            still=self.still,
        )

    def header(self, shard: int, weights: str) -> dict[str, str]:
        """What a file must say to be taken for this shard, made by these weights."""
        seeds = self.seeds(shard)
        return {
            "seeds": f"{seeds.start}:{seeds.stop}",
            "split": self.split,
            "reference": self.reference,
            "size": f"{self.width}x{self.height}, {self.reference_size}" + ", still" * self.still,
            "weights": weights,
        }

    def has(self, column: str, shard: int, weights: str | None = None) -> bool:
        """Is the file there, and (if given) made by these weights?"""
        path = self.file(column, shard)
        if not path.exists():
            return False
        return weights is None or read_header(path) == self.header(shard, weights)

    def write(self, column: str, shard: int, tensors: dict[str, Tensor], weights: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_safetensors(self.file(column, shard), tensors, self.header(shard, weights))

    def num_ready(self, columns: Sequence[str] = COLUMNS) -> int:
        """How many shards, counted from the first without a gap, have all the columns."""
        num = 0
        while all(self.has(column, num) for column in columns):
            num += 1
        return num


def read_header(path: Path) -> dict[str, str]:
    """The texts in a safetensors file's header."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@dataclass
class Table:
    """The first shards of a folder, memory-mapped. Grows by `extend`; rows are never copied."""

    folder: ShardFolder
    columns: tuple[str, ...] = COLUMNS
    shards: list[dict[str, Tensor]] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)

    def extend(self, num_shards: int) -> None:
        """Opens shards up to `num_shards`.

        Raises:
            ValueError: a file was made by other weights than its column's first.
        """
        for shard in range(len(self.shards), num_shards):
            tensors: dict[str, Tensor] = {}
            for column in self.columns:
                tensors |= self._open(column, shard)
            self.shards.append(tensors)

    def _open(self, column: str, shard: int) -> dict[str, Tensor]:
        path = self.folder.file(column, shard)
        with safe_open(path, framework="pt") as file:
            made_by = (file.metadata() or {}).get("weights", "")
            if self.weights.setdefault(column, made_by) != made_by:
                raise ValueError(f"{path} was encoded by other weights than the first shard")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def num_subjects(self) -> Tensor:
        """Subjects of every row, int64 [rows * shards]."""
        return torch.cat([tensors["num_subjects"] for tensors in self.shards]).long()

    def row(self, index: int) -> dict[str, Tensor]:
        """One row of all columns, by tensor name."""
        shard, row = divmod(index, self.folder.rows)
        return {name: tensor[row] for name, tensor in self.shards[shard].items()}
