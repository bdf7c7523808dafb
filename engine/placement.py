"""A `Runtime` on this machine: what "auto" is here, and the modules where they belong.

In bf16 the DiT keeps in fp32 what it computes in fp32: layer norms, modulation, the embedding of
the time, the head (`exact`). Latents, noise and the solver are fp32 on every device. The VAE stays
in fp32 (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import nn

from engine.attention import Choice, choose_for
from engine.errors import BackendError
from engine.layers import LayerNorm
from engine.runtime import Runtime

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Parts that compute in fp32 as a whole.
EXACT = ("time_embedding", "time_projection", "head")


class Placement(NamedTuple):
    """A runtime with nothing left open."""

    device: torch.device
    dtype: torch.dtype
    attention: Choice

    def dtypes(self, dit: nn.Module) -> Callable[[str], torch.dtype]:
        """The precision of each of a DiT's parameters, by name."""
        kept = set(exact(dit))
        return lambda name: torch.float32 if name in kept else self.dtype

    def told(self, runtime: Runtime) -> str:
        """The runtime in full, and why the attention kernel is this one."""
        name = next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        full = replace(runtime, device=str(self.device), dtype=name)
        values = asdict(full) | {"attention": self.attention.backend}
        told = ", ".join(f"{key}={value}" for key, value in values.items())
        return f"{told} ({self.attention.reason})"


def placed(runtime: Runtime) -> Placement:
    """What a runtime means on this machine.

    Raises:
        BackendError: there is no such device, or the attention kernel cannot be had on it.
    """
    device = _device(runtime.device)
    automatic = "fp32" if device.type == "cpu" else "bf16"
    name = automatic if runtime.dtype == "auto" else runtime.dtype
    return Placement(device, DTYPES[name], choose_for(device, runtime.attention))


def _device(name: str) -> torch.device:
    """With its number, if it is a card."""
    count = torch.cuda.device_count()
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    number = int(name.partition(":")[2] or 0)
    if number < count:
        return torch.device("cuda", number)
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    raise BackendError(f"device={name} is not there; torch sees {there}")


def exact(dit: nn.Module) -> Iterator[str]:
    """Names of the parameters with which a DiT computes in fp32, whatever the others are."""
    for path, module in dit.named_modules():
        whole = path.split(".")[0] in EXACT or isinstance(module, LayerNorm)
        for name, _ in module.named_parameters(prefix=path, recurse=False):
            if whole or name.endswith("modulation"):
                yield name
