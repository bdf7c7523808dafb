"""The identity stream of ID-Crafter: what the video reads of its subjects.

Shape legend
    B batch, C latent channels, S subjects, H W latent height, width of a reference, P tokens of one
    subject, R = S * P, V tokens of the vision-language model, T text tokens, K tokens attended to,
    N heads, D head dim, M model dim

`engine.dit` owns the parameters and runs it; here is what one layer of it computes.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from engine.layers import GELU, KV, Attention, LayerNorm, RMSNorm, attention
from engine.presets import DiTConfig

PLACE_DIM = 64


class SubjectInputs(NamedTuple):
    """What the identity stream reads.

    refs_BSCHW: latents of the references. tags_BSM: text-encoder features of each subject's own
    words (M here is text_dim). subject_mask_BS: True where there is a subject; None means all.
    vlm_BVM: VLM tokens (M is vlm_dim) or None; vlm_mask_BV likewise. slots_BS: which slot
    embedding each subject takes; None means in order.
    """

    refs_BSCHW: Tensor
    tags_BSM: Tensor
    subject_mask_BS: Tensor | None = None
    vlm_BVM: Tensor | None = None
    vlm_mask_BV: Tensor | None = None
    slots_BS: Tensor | None = None


class SubjectKV(NamedTuple):
    """What the video reads of the subjects, computed once per request.

    layers: K and V for each of the first `subject_layers` blocks. present_B: True for rows that
    have any subject; None when all have. Layout "concat" instead gives tokens_BRM, which join the
    video sequence (grid: subjects, rows, columns), with their mask, and layers of VLM tokens.
    """

    layers: tuple[KV, ...]
    present_B: Tensor | None = None
    tokens_BRM: Tensor | None = None
    token_mask_BR: Tensor | None = None
    grid: tuple[int, int, int] = (0, 0, 0)


class SubjectBlock(nn.Module):
    """One layer of the identity stream: the three stages of ID-Crafter, section A.1.

    f'  = f + o1 SelfAttn(LN f)                                   within a subject     (S.9)
    f'' = f' + sigmoid(W LN f') * o2 CrossAttn(f'_k, {f'_j, j≠k})  between subjects     (S.10)
    K, V from LN [f''; VLM tokens]                                for the video        (S.11)

    The residuals, the norms and the MLP (where `subject_ffn_dim` > 0) are not in the equations;
    without them the stages would not train (docs/decisions.md).
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim, inner = config.dim, config.subject_dim
        heads = inner * config.num_heads // dim
        if config.intra:
            self.norm1 = LayerNorm(dim, affine=True)
            self.intra = Attention(dim, heads, inner)
        if config.inter != "off":
            self.norm2 = LayerNorm(dim, affine=True)
            self.inter = Attention(dim, heads, inner)
        if config.inter == "gated":
            self.gate = nn.Linear(dim, dim)
        if config.subject_ffn_dim:
            self.norm3 = LayerNorm(dim, affine=True)
            self.ffn = nn.Sequential(
                nn.Linear(dim, config.subject_ffn_dim),
                GELU(),
                nn.Linear(config.subject_ffn_dim, dim),
            )
        self.norm = LayerNorm(dim, affine=True)
        if config.cross_modal:
            self.k = nn.Linear(dim, dim)
            self.v = nn.Linear(dim, dim)
            self.norm_k = RMSNorm(dim)

    def forward(
        self, f_BSPM: Tensor, rope: tuple[Tensor, Tensor], subject_mask_BS: Tensor | None
    ) -> Tensor:
        alone = f_BSPM.shape[1] == 1
        if self.config.intra:
            f_BSPM = f_BSPM + self._within(_match(self.norm1(f_BSPM), self.intra.q), rope)
        if self.config.inter == "joint" or (self.config.inter == "gated" and not alone):
            normed = _match(self.norm2(f_BSPM), self.inter.q)
            f_BSPM = f_BSPM + self._between(normed, subject_mask_BS)
        if self.config.subject_ffn_dim:
            y = self.ffn(_match(self.norm3(f_BSPM), self.ffn[0]))
            f_BSPM = f_BSPM + y.float()
        return f_BSPM

    def key_value(
        self, f_BSPM: Tensor, vlm_BVM: Tensor | None, words: Attention
    ) -> tuple[Tensor, Tensor]:
        """K and V that the video attends to in this layer: [B, K, N, D] each.

        Without stage 3 they go through the text's own projections (`words`), into its softmax.
        """
        seen = f_BSPM.flatten(1, 2)
        if vlm_BVM is not None:
            seen = torch.cat([seen, vlm_BVM.to(seen.dtype)], dim=1)
        seen = _match(self.norm(seen), self.k if self.config.cross_modal else words.k)
        if not self.config.cross_modal:
            return words.key(seen), words.value(seen)
        shape = (*seen.shape[:2], self.config.num_heads, -1)
        return self.norm_k(self.k(seen)).view(shape), self.v(seen).view(shape)

    def _within(self, f_BSPM: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        num_subjects = f_BSPM.shape[1]
        f = f_BSPM.flatten(0, 1)
        y: Tensor = self.intra.o(self.intra.over_itself(f, rope))
        return y.float().view(-1, num_subjects, *y.shape[1:])

    def _between(self, f_BSPM: Tensor, subject_mask_BS: Tensor | None) -> Tensor:
        """Stage 2. A subject without company gets exactly zero."""
        num_batch, num_subjects, num_tokens = f_BSPM.shape[:3]
        seen_BSS = _who_sees_whom(f_BSPM, subject_mask_BS, joint=self.config.inter == "joint")
        company_BS = seen_BSS.any(-1)
        # A softmax over nothing is undefined: the lonely see everybody, and the result is dropped.
        mask = (seen_BSS | ~company_BS[..., None])[:, :, None, :, None]
        mask = mask.expand(-1, -1, num_tokens, -1, num_tokens)
        mask = mask.reshape(num_batch, 1, num_subjects * num_tokens, -1)
        f = f_BSPM.flatten(1, 2)
        y = attention(self.inter.query(f), KV(self.inter.key(f), self.inter.value(f), mask))
        y = self.inter.o(y).view(f_BSPM.shape).float()
        if self.config.inter == "gated":
            y = y * torch.sigmoid(self.gate(f_BSPM).float())
        return torch.where(company_BS[:, :, None, None], y, torch.zeros_like(y))


def _match(x: Tensor, layer: nn.Module) -> Tensor:
    """fp32 in, the precision of the layer that reads it out."""
    return x.to(cast(Tensor, layer.weight).dtype)


def _who_sees_whom(f_BSPM: Tensor, subject_mask_BS: Tensor | None, joint: bool) -> Tensor:
    """bool [B, S, S]: may subject i look at subject j in stage 2?"""
    num_batch, num_subjects = f_BSPM.shape[:2]
    allowed = torch.ones(num_subjects, num_subjects, dtype=torch.bool, device=f_BSPM.device)
    if not joint:
        allowed = allowed & ~torch.eye(num_subjects, dtype=torch.bool, device=f_BSPM.device)
    seen_BSS = allowed.expand(num_batch, -1, -1)
    return seen_BSS if subject_mask_BS is None else seen_BSS & subject_mask_BS[:, None, :]


def places(rows: int, columns: int, device: torch.device) -> Tensor:
    """Sines and cosines of each cell's row and column, [rows * columns, PLACE_DIM].

    The stage-3 attention has no rotary position (nor has Wan's cross-attention), so without this a
    hat could be told from a shoe only by its looks.
    """
    num_rates = PLACE_DIM // 4
    rates = torch.pow(100.0, -torch.arange(num_rates, device=device) / num_rates)
    row, column = (
        torch.outer(torch.arange(length, device=device), rates) for length in (rows, columns)
    )
    grid = torch.cat([row[:, None].expand(-1, columns, -1), column.expand(rows, -1, -1)], dim=-1)
    return torch.cat([grid.sin(), grid.cos()], dim=-1).flatten(0, 1)


def join_text(text: tuple[KV, ...], subjects: SubjectKV) -> tuple[tuple[KV, ...], SubjectKV]:
    """Moves the subjects' K and V into the text's softmax, for the ablations without stage 3."""
    joined = list(text)
    for index, (old, new) in enumerate(zip(text, subjects.layers, strict=False)):
        joined[index] = KV(
            torch.cat([old.k_BKND, new.k_BKND], dim=1),
            torch.cat([old.v_BKND, new.v_BKND], dim=1),
            join_masks(old.k_BKND, old.mask_BK, new.k_BKND, new.mask_BK),
        )
    return tuple(joined), subjects._replace(layers=(), present_B=None)


def join_masks(
    a: Tensor, mask_a: Tensor | None, b: Tensor | None, mask_b: Tensor | None
) -> Tensor | None:
    """The mask of two token sequences [B, K, ...] laid end to end; None when all are real."""
    if b is None:
        return mask_a
    if mask_a is None and mask_b is None:
        return None
    parts = [
        x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        for x, mask in ((a, mask_a), (b, mask_b))
    ]
    return torch.cat(parts, dim=1)


def hide_absent(
    mask_BV: Tensor | None, vlm_BVM: Tensor, present_B: Tensor | None
) -> Tensor | None:
    """VLM tokens count only in rows that have a subject."""
    if present_B is None:
        return mask_BV
    real = vlm_BVM.new_ones(vlm_BVM.shape[:2], dtype=torch.bool) if mask_BV is None else mask_BV
    return real & present_B[:, None]
