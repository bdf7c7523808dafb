"""The diffusion transformer: Wan 2.1 text-to-video, with the identity stream of ID-Crafter.

Shape legend
    B batch, C latent channels, F H W latent frames, height, width, L video tokens, T text tokens,
    S subjects, P tokens of one subject, R = S * P, V tokens of the vision-language model,
    K = R + V tokens that the video may attend to, N heads, D head dim, M model dim

    x_BCFHW ─ patch ─▶ x_BLM ─ blocks ─▶ head ─▶ v_BCFHW
                               ▲    ▲
           text_BTM ─ k, v ────┘    └──── k, v per block ◀─ identity stream ◀─ references, tags, VLM

The stream follows the equations S.9-S.11 of the paper, which let it depend on neither the time nor
the video. So all of it runs once per request (`condition`), and every step is handed K and V; with
`stream_time` its tokens get the time embedding, and it runs at every step. With no subjects its
branch is not computed at all: the model then is plain Wan, bit for bit; so it is at initialisation,
where the value projections are zero.

Parameters carry the names of the upstream files (Wan-Video/Wan2.1 `wan/modules/model.py`), so those
load strictly; what the stream adds begins with one of `STREAM_PARAMETERS`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.layers import (
    GELU,
    KV,
    MLP,
    Attention,
    LayerNorm,
    Rope,
    attention,
    without_autocast,
)
from engine.presets import DiTConfig
from engine.split import Split
from engine.stream import (
    PLACE_DIM,
    SubjectBlock,
    SubjectInputs,
    SubjectKV,
    hide_absent,
    join_masks,
    join_text,
    places,
)

STREAM_PARAMETERS = (
    "subject_blocks.", "slot_embedding", "tag_projection.", "place_projection.", "vlm_projection.",
    "subject_time.",
)  # fmt: skip

Text = Tensor | tuple[KV, ...]  # features, or what `text_kv` made of them
Subjects = SubjectInputs | SubjectKV | None  # raw, or what `subject_stream` made of them


class Context(NamedTuple):
    """What VACE's context blocks read (`engine.vace`): tokens of the context, and the text's K and
    V for each of these blocks."""

    tokens_BLM: Tensor
    text: tuple[KV, ...]


class Condition(NamedTuple):
    """What a denoising step needs beside x and t: the text's K and V per block, the subjects.

    subjects are inputs yet where their K and V depend on the time (`DiTConfig.stream_time`).
    tail_BCFHW: clean latent frames that are laid behind the video's own and dropped again, as
    Phantom shows its references; None without any. context: VACE's.
    """

    text: tuple[KV, ...]
    subjects: Subjects = None
    tail_BCFHW: Tensor | None = None
    context: Context | None = None

    def repeated(self, times: int) -> "Condition":
        """Every row `times` times in succession."""
        if times == 1:
            return self
        return Condition(*(_each(part, lambda x: x.repeat_interleave(times, 0)) for part in self))

    def rows(self, start: int, stop: int) -> "Condition":
        """Only these rows."""
        return Condition(*(_each(part, lambda x: x[start:stop]) for part in self))


class Block(nn.Module):
    """One Wan block: self-attention, cross-attention to text (and subjects), MLP."""

    split: Split | None = None  # set on twins by `engine.parallel`

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = LayerNorm(dim, affine=False)
        self.self_attn = Attention(dim, config.num_heads)
        self.norm3 = LayerNorm(dim, affine=True)
        self.cross_attn = Attention(dim, config.num_heads)
        self.norm2 = LayerNorm(dim, affine=False)
        self.ffn = MLP(dim, config.ffn_dim)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        x_BLM: Tensor,
        e_B6M: Tensor,
        rope: tuple[Tensor, Tensor],
        mask_BL: Tensor | None,
        text: KV,
        subject: KV | None,
        present_B: Tensor | None,
    ) -> Tensor:
        # The residual stream and its modulation stay fp32; the projections run as autocast says.
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self.modulation.float() + e_B6M.float()
        ).chunk(6, dim=1)

        y = self._match(self.norm1.modulated(x_BLM, shift1, scale1))
        y = self.self_attn.o(self.self_attn.over_itself(y, rope, mask_BL, self.split))
        x_BLM = torch.addcmul(x_BLM, y.float(), gate1)

        q = self.cross_attn.query(self._match(self.norm3(x_BLM)))
        y = attention(q, text)
        if subject is not None:
            z = attention(q, subject)
            if present_B is not None:
                z = torch.where(present_B[:, None, None], z, torch.zeros_like(z))
            y = y + z
        x_BLM = x_BLM + self.cross_attn.o(y).float()

        y = self.ffn(self._match(self.norm2.modulated(x_BLM, shift2, scale2)))
        return torch.addcmul(x_BLM, y.float(), gate2)

    def _match(self, x: Tensor) -> Tensor:
        """fp32 in, the weights' own precision out (autocast has its own mind afterwards)."""
        return x.to(self.self_attn.q.weight.dtype)


class Head(nn.Module):
    """Final modulated norm and projection to patches, in fp32."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm = LayerNorm(config.dim, affine=False)
        self.head = nn.Linear(config.dim, config.latent_dim * math.prod(config.patch))
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x_BLM: Tensor, e_BM: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + e_BM.float()[:, None]).chunk(2, dim=1)
        x_BLM = self.norm.modulated(x_BLM, shift, scale)
        with without_autocast(x_BLM.device):
            return F.linear(x_BLM, self.head.weight.float(), self.head.bias.float())


class WanDiT(nn.Module):
    """Wan 2.1 T2V with the identity stream. `config.subject_layers` = 0 is the plain model."""

    split: Split | None = None  # how the sequence is shared out over processes, if it is

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        assert config.dim % config.num_heads == 0 and (config.dim // config.num_heads) % 2 == 0
        assert config.inter in ("gated", "joint", "off") and config.layout in ("stream", "concat")
        self.config = config
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.latent_dim, dim, config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), GELU(), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)
        self.rope = Rope(dim // config.num_heads)
        if config.subject_layers:
            self._build_stream(config)
        self._initialise()

    def _build_stream(self, config: DiTConfig) -> None:
        dim = config.dim
        self.slot_embedding = nn.Parameter(torch.randn(config.max_subjects, dim) * 0.02)
        if config.tag:
            self.tag_projection = nn.Linear(config.text_dim, dim)
        if config.place:
            self.place_projection = nn.Linear(PLACE_DIM, dim)
        if config.stream_time:
            self.subject_time = nn.Linear(dim, dim)
        if config.use_vlm:
            self.vlm_projection = nn.Sequential(
                LayerNorm(config.vlm_dim, affine=True),
                nn.Linear(config.vlm_dim, dim),
                GELU(),
                nn.Linear(dim, dim),
            )
        if config.layout == "stream":
            layers = range(config.subject_layers)
            self.subject_blocks = nn.ModuleList(SubjectBlock(config) for _ in layers)

    def forward(
        self,
        x_BCFHW: Tensor,
        t_B: Tensor,
        text: Text,
        subjects: Subjects = None,
        kept_BK: Tensor | None = None,
    ) -> Tensor:
        """The velocity at x_t, [B, C, F, H, W] fp32.

        Args:
            x_BCFHW: noisy latents. t_B: times in [0, 1], see `engine.flow`.
            text: text_BTM, zero-padded to `text_len` (the pads are attended to, as in Wan), or KV.
                Where x has n times its rows, each condition serves n successive rows of x.
            subjects: None is plain Wan.
            kept_BK: see `denoise`.
        """
        condition = self.condition(text, subjects)
        times = len(x_BCFHW) // len(condition.text[0].k_BKND)
        return self.denoise(x_BCFHW, t_B, condition.repeated(times), kept_BK)

    def condition(self, text: Text, subjects: Subjects = None) -> Condition:
        """All that does not change from step to step, computed once."""
        layers = self.text_kv(text) if isinstance(text, Tensor) else text
        if isinstance(subjects, SubjectInputs) and not self.config.stream_time:
            subjects = self.subject_stream(*subjects)
        return self._joined(Condition(layers, subjects))

    def _joined(self, condition: Condition) -> Condition:
        """The subjects in the text's softmax, in the layouts that have them there."""
        beside = self.config.layout == "stream" and self.config.cross_modal
        if beside or not isinstance(condition.subjects, SubjectKV):
            return condition
        return Condition(*join_text(condition.text, condition.subjects))

    def text_kv(self, text_BTM: Tensor) -> tuple[KV, ...]:
        """K and V of the prompt for every block."""
        return projected(self.blocks, self.text_features(text_BTM))

    def text_features(self, text_BTM: Tensor) -> Tensor:
        """The prompt as the cross-attentions read it, [B, T, M]."""
        features: Tensor = self.text_embedding(text_BTM.to(self.patch_embedding.weight.dtype))
        return features

    def subject_stream(
        self,
        refs_BSCHW: Tensor,
        tags_BSM: Tensor,
        subject_mask_BS: Tensor | None = None,
        vlm_BVM: Tensor | None = None,
        vlm_mask_BV: Tensor | None = None,
        slots_BS: Tensor | None = None,
        e_BM: Tensor | None = None,
    ) -> SubjectKV:
        """Runs the identity stream. The arguments are the fields of `SubjectInputs`, and the time
        embedding, which only a stream with `stream_time` reads."""
        f_BSPM, grid = self._reference_tokens(refs_BSCHW, tags_BSM, slots_BS)
        if self.config.stream_time:
            assert e_BM is not None
            time_BM = self.subject_time(F.silu(e_BM).to(self.subject_time.weight.dtype))
            f_BSPM = f_BSPM + time_BM[:, None, None].float()
        vlm_BVM = self._vlm_tokens(vlm_BVM)
        present_B, token_mask_BR = None, None
        if subject_mask_BS is not None:
            present_B = subject_mask_BS.any(-1)
            token_mask_BR = subject_mask_BS.repeat_interleave(grid[1] * grid[2], dim=1)
        if self.config.layout == "concat":
            vlm: tuple[KV, ...] = ()
            if vlm_BVM is not None:
                seen_BV = hide_absent(vlm_mask_BV, vlm_BVM, present_B)
                vlm = projected(self.blocks, vlm_BVM, seen_BV)
            return SubjectKV(vlm, present_B, f_BSPM.flatten(1, 2), token_mask_BR, grid)
        mask_BK = join_masks(f_BSPM.flatten(1, 2), token_mask_BR, vlm_BVM, vlm_mask_BV)
        if mask_BK is not None and present_B is not None:
            # A softmax over nothing is undefined: rows without subjects see all, and drop it. In
            # the text's softmax they need not.
            here = present_B[:, None]
            mask_BK = mask_BK | ~here if self.config.cross_modal else mask_BK & here
        rope = self.rope.at(1, *grid[1:])
        layers = []
        for block, subject_block in zip(self.blocks, self.subject_blocks, strict=False):
            f_BSPM = subject_block(f_BSPM, rope, subject_mask_BS)
            words = cast(Block, block).cross_attn
            k, v = cast(SubjectBlock, subject_block).key_value(f_BSPM, vlm_BVM, words)
            layers.append(KV(k, v, mask_BK))
        return SubjectKV(tuple(layers), present_B)

    def denoise(
        self,
        x_BCFHW: Tensor,
        t_B: Tensor,
        condition: Condition,
        kept_BK: Tensor | None = None,
    ) -> Tensor:
        """The velocity at x_t, given what `condition` computed.

        kept_BK: numbers of the video tokens that are computed, in training; the others are seen by
            none, and their velocity is 0. None: all.
        """
        e_BM, e_B6M = self._time(t_B)
        num_frames = x_BCFHW.shape[2] // self.config.patch[0]
        if condition.tail_BCFHW is not None:
            x_BCFHW = torch.cat([x_BCFHW, condition.tail_BCFHW.to(x_BCFHW.dtype)], dim=2)
        x = self.patch_embedding(x_BCFHW.to(self.patch_embedding.weight.dtype))
        rope, grid = self.rope.at(*x.shape[2:]), (num_frames, *x.shape[3:])
        # Every later sum keeps these strides: channels last, or each norm would copy first.
        x_BLM = x.flatten(2).transpose(1, 2).float().contiguous()
        num_video = math.prod(grid)
        x_BLM, rope = self._keep(x_BLM, rope, kept_BK, condition)
        if isinstance(condition.subjects, SubjectInputs):
            timed = self.subject_stream(*condition.subjects, e_BM=e_BM)
            condition = self._joined(condition._replace(subjects=timed))
        mask_BL, subjects = None, cast(SubjectKV | None, condition.subjects)
        if subjects is not None and subjects.tokens_BRM is not None:
            x_BLM, rope, mask_BL = self._append(x_BLM, rope, subjects, first=grid[0])
        if self.split is not None:
            x_BLM = self.split.part(x_BLM)
        hints = self.hints(x_BLM, e_B6M, rope, condition.context)
        for index, block in enumerate(self.blocks):
            subject, present_B = None, None
            if subjects is not None and index < len(subjects.layers):
                subject, present_B = subjects.layers[index], subjects.present_B
            text = condition.text[index]
            x_BLM = block(x_BLM, e_B6M, rope, mask_BL, text, subject, present_B)
            if index in hints:
                x_BLM = x_BLM + hints[index]
        if self.split is not None:
            y_BLM = self.split.whole(self.head(x_BLM, e_BM), len(rope[0]))
            return self._unpatch(y_BLM[:, :num_video], grid)
        y_BLM = self.head(x_BLM[:, :num_video], e_BM)
        if kept_BK is not None:
            all_BLM = y_BLM.new_zeros(len(y_BLM), num_video, y_BLM.shape[2])
            y_BLM = all_BLM.scatter(1, _wide(kept_BK, y_BLM), y_BLM)
        return self._unpatch(y_BLM, grid)

    def _keep(
        self,
        x_BLM: Tensor,
        rope: tuple[Tensor, Tensor],
        kept_BK: Tensor | None,
        condition: Condition,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """These tokens of each row, and their own angles; None: all.

        Raises:
            ValueError: the model lays other tokens beside the video's, or shares them out.
        """
        if kept_BK is None:
            return x_BLM, rope
        beside = self.config.layout == "concat" or condition.tail_BCFHW is not None
        if beside or condition.context is not None or self.split is not None:
            raise ValueError("kept_BK goes with a model whose sequence is the video alone")
        cos, sin = rope
        return x_BLM.gather(1, _wide(kept_BK, x_BLM)), (cos[kept_BK], sin[kept_BK])

    def hints(
        self,
        x_BLM: Tensor,
        e_B6M: Tensor,
        rope: tuple[Tensor, Tensor],
        context: Context | None,
    ) -> dict[int, Tensor]:
        """What is added behind a block, by its number: nothing in plain Wan."""
        return {}

    def _time(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """Time embedding [B, M] and the modulation of all blocks [B, 6, M], in fp32."""
        half = self.config.freq_dim // 2
        rates = torch.pow(
            10000.0, -torch.arange(half, dtype=torch.float64, device=t_B.device) / half
        )
        angles = torch.outer(t_B.double() * 1000, rates)
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        with without_autocast(t_B.device):
            e_BM = self.time_embedding(waves.to(self.head.head.weight.dtype))
            return e_BM, self.time_projection(e_BM).view(len(e_BM), 6, -1)

    def _reference_tokens(
        self, refs_BSCHW: Tensor, tags_BSM: Tensor, slots_BS: Tensor | None
    ) -> tuple[Tensor, tuple[int, int, int]]:
        """f_k = patches of the reference + its slot + its tag + each patch's place in the picture:
        [B, S, P, M] and (S, rows, cols)."""
        num_subjects = refs_BSCHW.shape[1]
        refs = refs_BSCHW.flatten(0, 1).to(self.patch_embedding.weight.dtype)
        patches = self.patch_embedding(refs[:, :, None])
        f_BSPM = patches.flatten(2).transpose(1, 2).float()
        f_BSPM = f_BSPM.view(-1, num_subjects, *f_BSPM.shape[1:])
        slots = self.slot_embedding[:num_subjects][None]
        if slots_BS is not None:
            slots = self.slot_embedding[slots_BS]
        f_BSPM = f_BSPM + slots[:, :, None].float()
        if self.config.tag:
            tags = self.tag_projection(tags_BSM.to(self.tag_projection.weight.dtype))
            f_BSPM = f_BSPM + tags[:, :, None].float()
        rows, columns = patches.shape[3:]
        if self.config.place:
            waves = places(rows, columns, f_BSPM.device).to(self.place_projection.weight.dtype)
            f_BSPM = f_BSPM + self.place_projection(waves).float()
        return f_BSPM, (num_subjects, rows, columns)

    def _vlm_tokens(self, vlm_BVM: Tensor | None) -> Tensor | None:
        if vlm_BVM is None or not self.config.use_vlm:
            return None
        normed = self.vlm_projection[0](vlm_BVM)
        projected: Tensor = self.vlm_projection[1:](normed.to(self.patch_embedding.weight.dtype))
        return projected

    def _append(
        self, x_BLM: Tensor, rope: tuple[Tensor, Tensor], subjects: SubjectKV, first: int
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor | None]:
        """Video and reference tokens as one sequence; references take the times after the video."""
        assert subjects.tokens_BRM is not None
        cos, sin = self.rope.at(*subjects.grid, first=first)
        rope = (torch.cat([rope[0], cos]), torch.cat([rope[1], sin]))
        mask = join_masks(x_BLM, None, subjects.tokens_BRM, subjects.token_mask_BR)
        return torch.cat([x_BLM, subjects.tokens_BRM.float()], dim=1), rope, mask

    def _unpatch(self, y_BLM: Tensor, grid: tuple[int, ...]) -> Tensor:
        y = y_BLM.view(len(y_BLM), *grid, *self.config.patch, -1)
        y = torch.einsum("bfhwpqrc->bcfphqwr", y)
        return y.flatten(6, 7).flatten(4, 5).flatten(2, 3)

    def _initialise(self) -> None:
        """Upstream's initial weights; the stream starts silent (its values are zero)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        for module in (*self.text_embedding, *self.time_embedding):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.head.weight)
        for name, parameter in self.named_parameters():
            path = name.split(".")
            is_value = path[0] == "subject_blocks" and path[2] == "v"
            if is_value or path[0] in ("tag_projection", "place_projection", "subject_time"):
                nn.init.zeros_(parameter)


def projected(
    blocks: nn.ModuleList, context_BTM: Tensor, mask_BT: Tensor | None = None
) -> tuple[KV, ...]:
    """K and V of a context for the cross-attention of each of these blocks."""
    return tuple(
        KV(block.cross_attn.key(context_BTM), block.cross_attn.value(context_BTM), mask_BT)
        for block in cast(list[Block], blocks)
    )


def _wide(kept_BK: Tensor, x_BLM: Tensor) -> Tensor:
    """An index of whole tokens of x: [B, K, M]."""
    return kept_BK[:, :, None].expand(-1, -1, x_BLM.shape[2])


def _each(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples with every tensor changed; other values as they are."""
    if isinstance(part, Tensor):
        return change(part)
    if not isinstance(part, tuple):
        return part
    parts = [_each(one, change) for one in part]
    return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
