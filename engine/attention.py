"""Which kernel computes attention. On a CPU always torch's own; on a card the best exact one.

Kernels other than torch's `scaled_dot_product_attention` go through diffusers' dispatcher, which
knows how to call them (diffusers 0.42 `models/attention_dispatch.py`).

Legend: B batch, L queries, K keys, N heads, D head dim.
"""

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from engine.errors import BackendError

NATIVE = "native"
# Our name -> diffusers' name of the backend.
BACKENDS = {
    NATIVE: "native",
    "flash3": "_flash_3",
    "flash2": "flash",
    "xformers": "xformers",
    "sage": "sage",
}
# Our name -> least and greatest compute capability. FlashAttention 3 is written for Hopper.
CARDS = {
    "flash3": ((9, 0), (9, 9)),
    "flash2": ((8, 0), (99, 0)),
    "xformers": ((7, 0), (99, 0)),
    "sage": ((8, 0), (99, 0)),
}
SAGE_HEADS = (64, 96, 128)
MAX_HEAD = 256
# CUDA device -> the kernel that the last engine loaded there asked for.
_CHOSEN: dict[int, str] = {}


class Choice(NamedTuple):
    """A name of `BACKENDS`, and why it is that one."""

    backend: str
    reason: str


def choose_attention(
    capability: tuple[int, int] | None, installed: Collection[str], asked: str = "auto"
) -> Choice:
    """The kernel for a card.

    Left alone it is FlashAttention 3 on Hopper where installed, else torch's, whose own kernels are
    FlashAttention 2 and xformers' already. SageAttention rounds to int8, so it must be asked for.

    Args:
        capability: the card's compute capability; None is a CPU.
        installed: names of `BACKENDS` whose libraries load.
        asked: a name of `BACKENDS`; "auto" leaves the choice to us.

    Raises:
        BackendError: the kernel asked for is not installed, or not for this card.
    """
    if asked == NATIVE:
        return Choice(NATIVE, "asked for")
    if asked != "auto":
        why_not = _hindrance(asked, capability, installed)
        if why_not:
            raise BackendError(f"attention={asked} cannot be used: {why_not}")
        return Choice(asked, "asked for" + ("; it is lossy" if asked == "sage" else ""))
    if capability is None:
        return Choice(NATIVE, "torch's own, as always on a CPU")
    why_not = _hindrance("flash3", capability, installed)
    if why_not:
        return Choice(NATIVE, f"torch's own; flash3: {why_not}")
    return Choice("flash3", "exact, and the fastest on Hopper")


def _hindrance(
    name: str, capability: tuple[int, int] | None, installed: Collection[str]
) -> str | None:
    """Why a kernel cannot run, None if it can."""
    if capability is None:
        return "it needs a CUDA device"
    least, greatest = CARDS[name]
    if not least <= capability <= greatest:
        return f"it is not for cards of compute capability {capability[0]}.{capability[1]}"
    return None if name in installed else "it is not installed"


def installed_backends() -> frozenset[str]:
    """Names of `BACKENDS` whose libraries are there, load, and are new enough for diffusers."""
    return frozenset(name for name, theirs in BACKENDS.items() if _loads(theirs))


def _loads(theirs: str) -> bool:
    from diffusers.models.attention_dispatch import attention_backend

    try:
        with attention_backend(theirs):
            return True
    except RuntimeError:  # how diffusers says that a library is missing or too old
        return False


def other_kernel(q_BLND: Tensor, masked: bool) -> str | None:
    """The backend that takes these queries in place of torch's attention, None if that does.

    Only a card's half-precision product without a mask, a gradient or an export goes elsewhere:
    FlashAttention 3 and SageAttention have no mask, diffusers' door to the former no gradient, and
    packages of compiled programs must not depend on a Python library.
    """
    if q_BLND.device.type != "cuda" or masked or torch.is_grad_enabled():
        return None
    if q_BLND.dtype not in (torch.bfloat16, torch.float16) or torch.compiler.is_exporting():
        return None
    name = backend_of(q_BLND.device.index or 0)
    return name if name != NATIVE and takes_head(name, q_BLND.shape[-1]) else None


def takes_head(name: str, dim: int) -> bool:
    """Whether a kernel other than torch's takes heads of this width."""
    return dim in SAGE_HEADS if name == "sage" else dim % 8 == 0 and dim <= MAX_HEAD


def choose_for(device: torch.device, asked: str = "auto") -> Choice:
    """The kernel for a device; `use` puts it to work.

    Raises:
        BackendError: see `choose_attention`.
    """
    if device.type != "cuda":
        return choose_attention(None, frozenset({NATIVE}), asked)
    capability = torch.cuda.get_device_capability(device)
    return choose_attention(capability, installed_backends(), asked)


def use(device: torch.device, choice: Choice) -> None:
    """From now on it is the kernel of a card, for all that computes there in this process."""
    if device.type == "cuda":
        _CHOSEN[device.index or 0] = choice.backend


@torch.compiler.assume_constant_result
def backend_of(index: int) -> str:
    """The kernel for CUDA device `index`: as `use` said, else left to us."""
    if index not in _CHOSEN:
        device = torch.device("cuda", index)
        use(device, choose_for(device))
    return _CHOSEN[index]


def dispatched(name: str, q_BLND: Tensor, k_BKND: Tensor, v_BKND: Tensor) -> Tensor:
    """Softmax attention by the named kernel -> [B, L, N, D]."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    y: Tensor = dispatch_attention_fn(
        q_BLND, k_BKND, v_BKND, backend=AttentionBackendName(BACKENDS[name])
    )
    return y
