"""One request over several processes, a GPU each, started by `torchrun`.

    cfg        the forwards of guidance are shared out: prompt | negative prompt | pictures alone.
               Each process computes its own with the kernels of a lone one and hears the others':
               the same bits.
    sequence   the video's tokens are shared out in every block (`engine.split`). Products of fewer
               rows round differently: the same video up to rounding.

Both at once are a grid, cfg by sequence. Every process encodes, steps and decodes for itself what
is not shared out, and so has the whole result; the first writes it.

A process that ends takes the others with it: their next exchange fails at once (gloo) or is ended
by torchrun, and one that hangs fails theirs after `TIMEOUT`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as td
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.rendezvous import rendezvous

from engine.compile import MODES, twin_of
from engine.dit import Condition, WanDiT
from engine.errors import BackendError
from engine.placement import placed
from engine.runtime import Runtime
from engine.sample import Conditions, Velocity, one_by_one
from engine.split import Split

TIMEOUT = timedelta(minutes=10)  # the slowest process may be that far behind: it compiles, say
ELSEWHERE = Condition(text=())  # stands for a condition that another process evaluates
MOST_FORWARDS = 3


class Parallel(NamedTuple):
    """How many processes share the forwards of guidance, and how many each sequence."""

    cfg: int = 1
    sequence: int = 1

    @classmethod
    def parse(cls, text: str, num_processes: int) -> Parallel:
        """ "cfg=2,sequence=4"; one of them may stand without a number and takes what is left.

        Raises:
            BackendError: the text says something else, or not that many processes run.
        """
        given: dict[str, int] = {}
        for part in text.split(","):
            name, sign, number = part.strip().partition("=")
            odd = sign and not (number.isdecimal() and int(number))
            if name not in cls._fields or name in given or odd:
                raise BackendError(
                    f"parallel {text!r} must be like cfg=2, sequence=4, or cfg=2,sequence=4"
                )
            given[name] = int(number) if sign else 0
        counted = given.get("cfg") or given.get("sequence") or 1
        found = cls(**{name: each or num_processes // counted for name, each in given.items()})
        if not 1 <= found.cfg <= MOST_FORWARDS or found.sequence < 1:
            raise BackendError(
                f"parallel {text!r}: cfg must be from 1 to {MOST_FORWARDS}, the forwards of a step,"
                f" and sequence at least 1; for {num_processes} processes it is {found}"
            )
        if found.cfg * found.sequence != num_processes:
            raise BackendError(
                f"parallel {text!r} is for {found.cfg * found.sequence} processes, and"
                f" {num_processes} run: torchrun --nproc-per-node says how many"
            )
        return found


@dataclass(frozen=True)
class Team:
    """The processes of a run, seen from one. Without a group or a split nothing is shared so."""

    rank: int
    parallel: Parallel
    store: td.Store
    device: str = "cpu"
    cfg: td.ProcessGroup | None = None
    split: Split | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def twin(self, dit: WanDiT, mode: str) -> WanDiT:
        """The DiT as this process runs it; it shares every weight with `dit`.

        Raises:
            BackendError: a sequence over more processes than there are heads, or in packages.
        """
        if self.split is None:
            return dit
        if self.split.size > dit.config.num_heads:
            raise BackendError(
                f"parallel sequence={self.split.size} must be at most {dit.config.num_heads},"
                " the heads of this model"
            )
        if mode not in MODES[:2]:
            raise BackendError(
                f"parallel sequence={self.split.size} and compile mode {mode!r} do not go together:"
                " a package knows no other process; use 'eager' or 'inductor'"
            )
        twin, blocks = twin_of(dit)
        twin.split = self.split
        for block in blocks:
            block.split = self.split
        return twin

    def own(self, conditions: Conditions) -> Conditions:
        """The same without what only other processes evaluate, so that its memory is free.

        Raises:
            BackendError: there are fewer forwards than processes that share them.
        """
        count = sum(condition is not None for condition in conditions)
        if self.parallel.cfg > count:
            raise BackendError(
                f"parallel cfg={self.parallel.cfg} must be at most {count},"
                " the forwards of a step of this request"
            )
        if self.cfg is None:
            return conditions
        # In the order in which `guide` asks for them, which is that of the fields.
        there = [name for name, each in conditions._asdict().items() if each is not None]
        mine = self.cfg.rank()
        gone = [name for number, name in enumerate(there) if self._owner(number) != mine]
        return conditions._replace(**dict.fromkeys(gone, ELSEWHERE))

    def each(
        self, velocity: Velocity, x: Tensor, t_B: Tensor, conditions: Sequence[Condition]
    ) -> Sequence[Tensor]:
        """The velocities of all conditions, of which this process computes its own."""
        if self.cfg is None:
            return one_by_one(velocity, x, t_B, conditions)
        mine = self.cfg.rank()
        found = [
            velocity(x, t_B, condition).contiguous()
            if self._owner(number) == mine
            else torch.empty_like(x, memory_format=torch.contiguous_format)
            for number, condition in enumerate(conditions)
        ]
        for number, v in enumerate(found):
            td.broadcast(v, group=self.cfg, group_src=self._owner(number))
        return found

    def counted(self, asked: int, computed: int) -> tuple[int, int]:
        """The sums of these over the processes that share the forwards, for each of them."""
        if self.cfg is None:
            return asked, computed
        both = torch.tensor([asked, computed], device=self.device)
        td.all_reduce(both, group=self.cfg)
        return int(both[0]), int(both[1])

    def _owner(self, number: int) -> int:
        # What is left over goes to the last: without subjects a forward is the cheapest.
        return min(number, self.parallel.cfg - 1)

    @contextmanager
    def exchanging(self) -> Iterator[None]:
        """Around work with exchanges: BackendError where another process fails to take part."""
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, td.DistError) or "gloo" in str(error)):
                raise
            reason = str(error).splitlines()[0]
            raise BackendError(
                f"parallel: another process has ended or hangs; process {self.rank} cannot go on"
                f" ({reason})"
            ) from error

    def speaks(self) -> bool:
        """Whether this process is the first to ask, and so the one that tells what went wrong."""
        try:
            return self.store.compare_set("spoken", "", str(self.rank)) == str(self.rank).encode()
        except RuntimeError:  # the store is gone, and with it whoever else could speak
            return True

    def leave(self) -> None:
        """Ends the connections."""
        td.destroy_process_group()


def join(text: str, device: str = "auto", timeout: timedelta = TIMEOUT) -> Team:
    """Meets the other processes that `torchrun` has started.

    Args:
        text: see `Parallel.parse`.
        device: "cpu", or "cuda": then each process takes the card of its number on this machine;
            "auto" is the latter where there are cards.

    Raises:
        BackendError: torchrun has not started this process, or not as many as `text` is for, or
            there is no card for it.
    """
    if "WORLD_SIZE" not in os.environ:
        raise BackendError(
            f"parallel {text!r} needs several processes; start them with"
            " torchrun --nproc-per-node 2 -m troupe generate …"
        )
    parallel = Parallel.parse(text, int(os.environ["WORLD_SIZE"]))
    if device.startswith("cuda:"):
        raise BackendError(
            f"parallel {text!r} takes a card for each process: device must be cuda, not {device}"
        )
    if device != "cpu" and torch.cuda.device_count():
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    found = placed(Runtime(device)).device
    store, rank, _ = next(iter(rendezvous("env://", timeout=timeout)))
    store.set_timeout(timeout)
    return meet(parallel, td.PrefixStore("troupe", store), rank, found, timeout)


def meet(
    parallel: Parallel,
    store: td.Store,
    rank: int,
    device: torch.device,
    timeout: timedelta = TIMEOUT,
) -> Team:
    """The groups of a run. Every process calls it, with a store that all of them reach."""
    on_card = device.type == "cuda"
    if on_card:
        torch.cuda.set_device(device)
    td.init_process_group(
        "nccl" if on_card else "gloo",
        store=store,
        rank=rank,
        world_size=parallel.cfg * parallel.sequence,
        timeout=timeout,
        device_id=device if on_card else None,
    )
    mesh = init_device_mesh(device.type, parallel, mesh_dim_names=Parallel._fields)
    cfg, sequence = mesh.get_group("cfg"), mesh.get_group("sequence")
    split = Split(sequence.group_name, sequence.rank(), parallel.sequence)
    return Team(
        rank,
        parallel,
        store,
        str(device),
        cfg if parallel.cfg > 1 else None,
        split if parallel.sequence > 1 else None,
    )
