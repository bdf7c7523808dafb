"""What work costs: FLOPs, and bytes alive at once, counted while it runs.

On meta tensors (shapes without contents) nothing is computed; on real ones all is.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula


def _fused_linear(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of `engine.layers.MLP`'s first product; the shapes are [..., in] and [out, in]."""
    return 2 * math.prod(x) * weight[0]


if torch.backends.mkldnn.is_available():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_fused_linear)


@dataclass(frozen=True)
class Cost:
    """One run of one kind of work. flops: by kind, "matmul" or "convolution", 2 per multiply-add.
    peak_bytes: alive at once beside weights and inputs."""

    flops: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0

    @property
    def total(self) -> float:
        return float(sum(self.flops.values()))


def metered(work: Callable[[], object]) -> Cost:
    """Runs `work`, without gradients; what it computes and how much it holds at once."""
    meter = _Meter()
    with torch.no_grad(), meter, _Attention(meter):
        result = work()
    del result
    return Cost(meter.flops, meter.peak)


class _Meter(TorchDispatchMode):
    """Counts FLOPs by kind, and the bytes of storages that were made and are not gone yet."""

    def __init__(self) -> None:
        super().__init__()
        self.flops: Counter[str] = Counter()
        self.alive: set[int] = set()
        self.foreign: set[int] = set()  # weights and inputs
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._meet(leaf.untyped_storage())
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            kind = "convolution" if "convolution" in str(packet) else "matmul"
            self.flops[kind] += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._hold(leaf.untyped_storage())
        return out

    def _meet(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.alive and key not in self.foreign:
            self.foreign.add(key)
            # Where it was, the next one may be.
            weakref.finalize(storage, self.foreign.discard, key)

    def _hold(self, storage: Any) -> None:
        key = storage._cdata
        if key in self.alive or key in self.foreign:
            return
        self.alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key, storage.nbytes())

    def _let_go(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


class _Attention(TorchFunctionMode):
    """Counts attention as one kernel: on meta it would fall apart into products with all scores."""

    def __init__(self, meter: _Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3]
        scores = q[..., 0].numel() * k.shape[-2]
        self.meter.flops["attention"] += 2 * scores * (q.shape[-1] + v.shape[-1])
        return torch.empty_like(q)
