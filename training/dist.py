"""Several processes, one run: start them, average gradients, agree on when to stop.

Data-parallel by hand (gloo on CPU, nccl on GPU): every process holds the whole model, takes every
`size`-th batch index, and the gradients are averaged in one flat all-reduce per step. So a run of
two processes is the run of one process that accumulates two batches. `shard` is the other way, for
models that do not fit: FSDP2 applied to a finished module from outside.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

# A backend for cards. Starting weights and decisions about time are exchanged on the CPU, which
# nccl alone does not know.
ON_CARDS = "cpu:gloo,cuda:nccl"

# The methods of a DiT that are called from outside, besides its forward.
ENTRIES = ("condition", "text_kv", "text_features", "subject_stream", "context", "denoise")


@dataclass(frozen=True)
class Group:
    """This process's place in the run; the default is a run of one process."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        td.all_reduce(flat)
        flat /= self.size
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def from_first(self, values: list[float]) -> list[float]:
        """The first process's numbers, in every process: decisions about time are made once."""
        if self.size == 1:
            return values
        message = torch.tensor(values, dtype=torch.float64)
        td.broadcast(message, src=0)
        return [float(v) for v in message]

    def wait(self) -> None:
        """Returns when every process is here."""
        if self.size > 1:
            td.barrier()

    def same_weights_(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors into all."""
        if self.size > 1:
            for tensor in tensors:
                td.broadcast(tensor, src=0)


def current() -> Group:
    """The group that this process belongs to."""
    if td.is_available() and td.is_initialized():
        return Group(td.get_rank(), td.get_world_size())
    return Group()


def launch(main: Callable[[], None], num_processes: int, backend: str = "gloo") -> None:
    """Run `main` in `num_processes` processes; this process is the first of them.

    A killed first process breaks the connection and the others end with it; none is orphaned.
    `main` must be importable (the others are spawned), and reads its place with `current()`.
    backend: "gloo", or `ON_CARDS`, a card for each process.

    Raises:
        RuntimeError: another process has failed; the message has the exit codes.
    """
    if num_processes == 1:
        return main()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        context = mp.get_context("spawn")
        others = [
            context.Process(target=_other, args=(main, r, num_processes, meeting, backend))
            for r in range(1, num_processes)
        ]
        for process in others:
            process.start()
        _member(main, 0, num_processes, meeting, backend)
        for process in others:
            process.join()
    failed = [p.exitcode for p in others if p.exitcode]
    if failed:
        raise RuntimeError(f"training processes ended with exit codes {failed}")


def _other(main: Callable[[], None], rank: int, size: int, meeting: str, backend: str) -> None:
    _member(main, rank, size, meeting, backend)
    # Threads of gloo's can abort a process at its very end (seen: SIGABRT after all was done).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _member(
    main: Callable[[], None], rank: int, size: int, meeting: str, backend: str
) -> None:
    # One thread each: threads that share two cores spin in OpenMP barriers (40x slower, measured).
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // size))
    if backend == ON_CARDS:
        torch.cuda.set_device(rank)
    td.init_process_group(backend, init_method=meeting, rank=rank, world_size=size)
    try:
        main()
    finally:
        td.destroy_process_group()


def shard(model: nn.Module, parts: Iterable[nn.Module], bf16: bool = True) -> nn.Module:
    """FSDP2: parameters, gradients and moments live in slices over the processes.

    Each of `parts` is gathered when its forward runs and let go after it, the rest of the model
    when one of its `ENTRIES` is called; so every part must be entered through its forward. `parts`
    compute in bf16, the rest in fp32, as are master weights and reductions. The module keeps its
    class and names. It may still lie on the CPU: every part goes to its card by itself.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    compute = torch.bfloat16 if bf16 else torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for part in parts:
        fully_shard(part, mp_policy=policy)
    # Let go after each call, also at the root: a rollout has no backward that would do it, and the
    # next one would compute with the weights of before the update.
    fully_shard(
        model, mp_policy=replace(policy, param_dtype=torch.float32), reshard_after_forward=True
    )
    _enter_by_forward(model, [name for name in ENTRIES if hasattr(model, name)])
    return model


def _enter_by_forward(model: nn.Module, names: Sequence[str]) -> None:
    """A call of these methods from outside becomes one of the module itself, which is when FSDP
    gathers what lies at the root; calls from one to another stay what they are."""
    own = {name: getattr(model, name) for name in (*names, "forward")}
    inside = False

    def forward(*given: Any, entry: str = "forward", **named: Any) -> Any:
        nonlocal inside
        before, inside = inside, True
        try:
            return own[entry](*given, **named)
        finally:
            inside = before

    def door(entry: str) -> Callable[..., Any]:
        def enter(*given: Any, **named: Any) -> Any:
            if inside:
                return own[entry](*given, **named)
            return model(*given, entry=entry, **named)

        return enter

    for name in names:
        setattr(model, name, door(name))
    model.forward = forward


def large_parts(model: nn.Module) -> list[nn.Module]:
    """The linear maps of a DiT's blocks: they hold nearly all weights, and each has a forward."""
    return [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "blocks." in n]


def local(tensor: Tensor) -> Tensor:
    """This process's slice of a sharded tensor; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, gathered (every process must ask); any other tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
