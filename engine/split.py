"""One sequence over several processes, a GPU each: every token in one, every head in one.

    tokens of this process, all heads ─ all to all ─▶ all tokens, heads of this process
                                                             │ attention
    tokens of this process, all heads ◀─ all to all ─────────┘

DeepSpeed-Ulysses (arXiv 2309.14509), with shares as even as they can be: neither the length nor
the number of heads must be a multiple of the number of processes. Everything else in a block treats
each token alone. Written in torch's functional collectives, which torch.compile knows.

Legend: B batch, L tokens, N heads, D head dim, M model dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import _functional_collectives as collectives
from torch.distributed.distributed_c10d import GroupName


@dataclass(frozen=True)
class Split:
    """This process's place among those that share a sequence. group: torch's name of them."""

    group: GroupName
    rank: int
    size: int

    def part(self, x_BLM: Tensor) -> Tensor:
        """The tokens of this process."""
        return x_BLM.tensor_split(self.size, dim=1)[self.rank]

    def whole(self, x_BLM: Tensor, length: int) -> Tensor:
        """All `length` tokens, in every process. `part` turned round."""
        counts = shares(length, self.size)
        padded = F.pad(x_BLM, (0, 0, 0, counts[0] - x_BLM.shape[1])).contiguous()
        gathered = collectives.wait_tensor(
            collectives.all_gather_single(padded[None], 0, self.group)
        )
        parts = [part[:, :count] for part, count in zip(gathered, counts, strict=True)]
        return torch.cat(parts, dim=1)

    def to_heads(
        self, q_BLND: Tensor, k_BLND: Tensor, v_BLND: Tensor, length: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From these tokens' q, k and v of all heads to all `length` tokens' of these heads, each
        [B, length, n, D] with n = `shares(N, size)[rank]`."""
        kind = v_BLND.dtype  # a message has one dtype, the wider: nothing is lost there and back
        x = torch.stack([q_BLND, k_BLND, v_BLND.to(q_BLND.dtype)])
        heads = shares(x.shape[3], self.size)[self.rank]
        found = self._exchange(
            x.tensor_split(self.size, dim=3),
            [(3, x.shape[1], count, heads, x.shape[4]) for count in shares(length, self.size)],
        )
        q, k, v = torch.cat(found, dim=2)
        return q, k, v.to(kind)

    def to_tokens(self, y_BLM: Tensor, num_heads: int) -> Tensor:
        """From all tokens' results of these heads to these tokens' of all `num_heads`: the way
        back. M is heads side by side, in and out."""
        heads = shares(num_heads, self.size)
        width = y_BLM.shape[2] // heads[self.rank]
        tokens = shares(y_BLM.shape[1], self.size)[self.rank]
        found = self._exchange(
            y_BLM.tensor_split(self.size, dim=1),
            [(len(y_BLM), tokens, count * width) for count in heads],
        )
        return torch.cat(found, dim=2)

    def _exchange(
        self, parts: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]
    ) -> list[Tensor]:
        """Sends each process its part; `shapes` are those of what each of them sends here."""
        sent = torch.cat([part.reshape(-1) for part in parts])
        counts = [math.prod(shape) for shape in shapes]
        flat = collectives.wait_tensor(
            collectives.all_to_all_single(
                sent, counts, [part.numel() for part in parts], self.group
            )
        )
        return [x.view(shape) for x, shape in zip(flat.split(counts), shapes, strict=True)]


def shares(total: int, size: int) -> list[int]:
    """`total` things over `size` processes, the first ones may have one more (`tensor_split`)."""
    few, more = divmod(total, size)
    return [few + (rank < more) for rank in range(size)]
