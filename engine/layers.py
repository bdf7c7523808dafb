"""Layers of the DiT: attention over given keys and values, norms in fp32, 3-D RoPE.

Shape legend: B batch, L video tokens, K tokens attended to, N heads, D head dim, M model dim.

Parameters carry the names of the upstream file (Wan-Video/Wan2.1 `wan/modules/model.py`).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.attention import dispatched, other_kernel
from engine.split import Split

EPS = 1e-6
ROPE_POSITIONS = 1024
MLP_TOKENS = 512


class KV(NamedTuple):
    """Keys and values of one block: [B, K, N, D] each; mask_BK is True for real tokens or None."""

    k_BKND: Tensor
    v_BKND: Tensor
    mask_BK: Tensor | None = None


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Autocast off on this device; meta tensors (`engine.plan`) know none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def attention(q_BLND: Tensor, kv: KV) -> Tensor:
    """Softmax attention -> [B, L, N * D]. The mask is [B, K], or [B, 1, L, K] per query."""
    mask = kv.mask_BK
    if mask is not None and mask.ndim == 2:
        mask = mask[:, None, None, :]
    # Norms and RoPE work in fp32; the product runs in the precision of the values.
    q, k = q_BLND.to(kv.v_BKND.dtype), kv.k_BKND.to(kv.v_BKND.dtype)
    other = other_kernel(q, masked=mask is not None)
    if other is not None:
        return dispatched(other, q, k, kv.v_BKND).flatten(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), kv.v_BKND.transpose(1, 2)
    if q.device.type == "cpu" and torch.is_grad_enabled():
        # The CPU's flash kernel takes 20 times as long as products to go backward in bf16.
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        y: Tensor = scores.softmax(-1) @ v
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return y.transpose(1, 2).flatten(2)


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in fp32 (WanRMSNorm)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        # torch's own widens what is narrower than fp32, and is a single kernel on a card.
        return F.rms_norm(x.to(self.weight.dtype), self.weight.shape, self.weight, EPS)


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 whatever comes in; returns fp32."""

    def __init__(self, dim: int, affine: bool) -> None:
        super().__init__(dim, eps=EPS, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps)

    def modulated(self, x_BLM: Tensor, shift_B1M: Tensor, scale_B1M: Tensor) -> Tensor:
        """norm(x) * (1 + scale) + shift, in fp32, for a norm without parameters of its own.

        One row's modulation is what the kernel calls weight and bias: one pass over memory.
        """
        scale_B1M = 1 + scale_B1M
        if len(scale_B1M) > 1:
            return torch.addcmul(shift_B1M, self(x_BLM), scale_B1M)
        weight, bias = scale_B1M.flatten(), shift_B1M.flatten()
        return F.layer_norm(x_BLM.float(), self.normalized_shape, weight, bias, self.eps)


class GELU(nn.Module):
    """`nn.GELU(approximate="tanh")`; compiled, it is written with a sigmoid, 1 + tanh(z) =
    2 sigmoid(2z), which takes two thirds of the time on a CPU, forward and backward."""

    def forward(self, x: Tensor) -> Tensor:
        return sigmoid_gelu(x) if torch.compiler.is_compiling() else F.gelu(x, approximate="tanh")


class MLP(nn.Sequential):
    """Linear, GELU in its tanh form, Linear: upstream's `ffn`, by its names `0` and `2`.

    Each token is looked at alone, so eagerly on a CPU some are taken at a time, whose wide middle
    then stays in the cache; and fp32 goes through oneDNN's product with GELU inside, which takes an
    eighth less time than a product and a GELU, and is the same up to rounding.
    """

    def __init__(self, dim: int, wide: int) -> None:
        super().__init__(nn.Linear(dim, wide), GELU(), nn.Linear(wide, dim))

    def forward(self, x_BLM: Tensor) -> Tensor:
        if x_BLM.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return cast(Tensor, super().forward(x_BLM))
        pieces = x_BLM.flatten(0, -2).split(MLP_TOKENS)
        parts = [self[2](self._wide(piece)) for piece in pieces]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x_BLM.shape)

    def _wide(self, x: Tensor) -> Tensor:
        """The first product and its GELU, in one if nothing stands between them: no adapter, no
        quantised weight, no hook, no autocast."""
        first = self[0]
        plain = type(first) is nn.Linear and type(first.weight) is nn.Parameter
        hooked = plain and (first._forward_hooks or first._forward_pre_hooks)
        kinds = {x.dtype, first.weight.dtype} if plain else set()
        fp32 = kinds == {torch.float32} and not torch.is_autocast_enabled("cpu")
        if fp32 and not hooked and torch.backends.mkldnn.is_available():
            fused = torch.ops.mkldnn._linear_pointwise
            return cast(Tensor, fused(x, first.weight, first.bias, "gelu", [], "tanh"))
        return cast(Tensor, self[1](first(x)))


def sigmoid_gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU, up to rounding."""
    return x * torch.sigmoid(1.5957691216057308 * x * (1 + 0.044715 * x * x))


class Rope(nn.Module):
    """Rotary embedding over frames, rows and columns, for interleaved pairs (Wan `rope_params`).

    A head of D dims gives D - 4 (D // 6) to time and 2 (D // 6) each to height and width.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        side = 2 * (head_dim // 6)
        self.widths = (head_dim - 2 * side, side, side)
        angles = []
        for width in self.widths:
            rates = 1.0 / torch.pow(10000.0, torch.arange(0, width, 2, dtype=torch.float64) / width)
            angles.append(torch.outer(torch.arange(ROPE_POSITIONS, dtype=torch.float64), rates))
        turns = torch.cat(angles, dim=1)
        self.register_buffer("turns", torch.stack([turns.cos(), turns.sin()]).float(), False)

    def at(self, f: int, h: int, w: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """cos and sin for f frames from number `first`, [f * h * w, D / 2] each."""
        split = [width // 2 for width in self.widths]
        time, row, column = torch.split(cast(Tensor, self.turns), split, dim=2)
        parts = [
            time[:, first : first + f].view(2, f, 1, 1, -1).expand(2, f, h, w, -1),
            row[:, :h].view(2, 1, h, 1, -1).expand(2, f, h, w, -1),
            column[:, :w].view(2, 1, 1, w, -1).expand(2, f, h, w, -1),
        ]
        cos, sin = torch.cat(parts, dim=-1).reshape(2, f * h * w, -1)
        return cos, sin


def rotate(x_BLND: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turns each pair (x[2i], x[2i + 1]) by its position's angle, in fp32.

    The rope is [L, D / 2], or [B, L, D / 2] where each row has tokens of its own. As a product of
    complex numbers it is one pass over memory instead of seven, to the same bits; compilers, which
    know no complex numbers, fuse the other form themselves.
    """
    cos, sin = (turn[..., None, :] for turn in rope)
    if not torch.compiler.is_compiling():
        pairs = torch.view_as_complex(x_BLND.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
    even, odd = x_BLND[..., ::2].float(), x_BLND[..., 1::2].float()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Attention(nn.Module):
    """The projections of one attention; q and k are RMS-normed over the full width.

    `inner` is the width inside, `num_heads` heads; in and out are `dim` wide.
    """

    def __init__(self, dim: int, num_heads: int, inner: int | None = None) -> None:
        super().__init__()
        inner = inner or dim
        self.num_heads = num_heads
        self.q = nn.Linear(dim, inner)
        self.k = nn.Linear(dim, inner)
        self.v = nn.Linear(dim, inner)
        self.o = nn.Linear(inner, dim)
        self.norm_q = RMSNorm(inner)
        self.norm_k = RMSNorm(inner)

    def over_itself(
        self,
        x_BLM: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_BL: Tensor | None = None,
        split: Split | None = None,
    ) -> Tensor:
        """Attention of a sequence to itself, behind which `o` comes: [B, L, N * D].

        With a split x is this process's part; rope and mask are those of the whole.
        """
        q, k, v = self.query(x_BLM), self.key(x_BLM), self.value(x_BLM)
        if split is not None:
            q, k, v = split.to_heads(q, k, v, len(rope[0]))
        y = attention(rotate(q, rope), KV(rotate(k, rope), v, mask_BL))
        return y if split is None else split.to_tokens(y, self.num_heads)

    def query(self, x_BLM: Tensor) -> Tensor:
        """[B, L, N, D], normed over all heads, as is `key`."""
        return self._heads(self.norm_q(self.q(x_BLM)))

    def key(self, x_BLM: Tensor) -> Tensor:
        """[B, L, N, D], normed."""
        return self._heads(self.norm_k(self.k(x_BLM)))

    def value(self, x_BLM: Tensor) -> Tensor:
        """[B, L, N, D] as projected."""
        return self._heads(self.v(x_BLM))

    def _heads(self, x_BLM: Tensor) -> Tensor:
        return x_BLM.view(*x_BLM.shape[:2], self.num_heads, -1)
