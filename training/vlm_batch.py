"""Conversations about pictures as batches, and Qwen2.5-VL's forward over them, fast on a CPU.

The same arithmetic as transformers' processor and model (tests hold them equal), but over whole
batches: `training.vlm` trains with it, and it precomputes the DiT's conditions.

Legend: B conversations, L tokens, N pictures of one size, P patches of a picture, K its tokens
(P / 4), C numbers of a patch, D hidden size, V tokens of a user turn, R answers to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    apply_rotary_pos_emb_vision,
    get_vision_position_ids,
    get_vision_window_index,
)

from engine.presets import VLMConfig
from engine.vlm import content, special_ids

IGNORE = -100


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size: uint8 pixels [N, H, W, 3], where their tokens lie in the flattened
    [B * L], and what is to be read from them (int64 [N, R], IGNORE: nothing)."""

    pixels_NHWC: Tensor
    slots_NK: Tensor
    truth_NR: Tensor


@dataclass(frozen=True)
class TalkBatch:
    """ids, mask, labels int64 [B, L] (labels IGNORE outside answers), positions_3BL as upstream's
    `get_rope_index`, pictures by size."""

    ids_BL: Tensor
    mask_BL: Tensor
    positions_3BL: Tensor
    labels_BL: Tensor
    pictures: tuple[Pictures, ...]


@dataclass(frozen=True)
class _Row:
    """One tokenized conversation: ids with a picture's tokens written out, positions [3, L], and
    for each picture where its tokens begin."""

    ids: list[int]
    positions_3L: np.ndarray
    starts: list[int]


def _lay_out(ids: Sequence[int], pad_id: int, grids: Sequence[tuple[int, int]]) -> _Row:
    """Writes each picture token out as its grid of tokens, with 3-D rotary positions: time stands
    still in a picture, and the words after it go on from its longer side (Qwen2-VL, M-RoPE)."""
    out: list[int] = []
    positions, starts = [], []
    now, waiting = 0, list(grids)
    for token in ids:
        if token != pad_id:
            out.append(token)
            positions.append(np.full((3, 1), now))
            now += 1
            continue
        height, width = waiting.pop(0)
        starts.append(len(out))
        out += [pad_id] * (height * width)
        row, column = np.divmod(np.arange(height * width), width)
        positions.append(np.stack([np.zeros_like(row), row, column]) + now)
        now += max(height, width)
    assert not waiting, "more pictures than places for them"
    return _Row(out, np.concatenate(positions, axis=1), starts)


def collate(
    turns: Sequence[str],
    pictures: Sequence[Sequence[np.ndarray]],
    tokenizer: Tokenizer,
    config: VLMConfig,
    truths: Sequence[Sequence[Sequence[int]]] | None = None,
    told: Sequence[Sequence[int]] | None = None,
) -> TalkBatch:
    """Conversations in chat form and their pictures (sides a multiple of a token's) as tensors,
    right-padded. Labels are what follows the last turn's beginning; `told` are token ids to append
    to each conversation (what the model has answered so far)."""
    cell = config.patch_size * config.merge_size
    ids = special_ids(tokenizer)
    pad, start = ids["<|image_pad|>"], ids["<|im_start|>"]
    rows = []
    for i, encoding in enumerate(tokenizer.encode_batch(list(turns))):
        grids = [(p.shape[0] // cell, p.shape[1] // cell) for p in pictures[i]]
        rows.append(_lay_out([*encoding.ids, *(told[i] if told else ())], pad, grids))
    length = _rounded_up(max(len(row.ids) for row in rows))
    shape = (len(rows), length)
    ids_BL, mask_BL = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels_BL, positions_3BL = np.full(shape, IGNORE), np.zeros((3, *shape), np.int64)
    for i, row in enumerate(rows):
        num = len(row.ids)
        ids_BL[i, :num], mask_BL[i, :num], positions_3BL[:, i, :num] = row.ids, 1, row.positions_3L
        # "<|im_start|>", "assistant" and a line break come before the answer.
        answer = num - row.ids[::-1].index(start) + 2
        labels_BL[i, answer:num] = row.ids[answer:]
    return TalkBatch(
        torch.from_numpy(ids_BL),
        torch.from_numpy(mask_BL),
        torch.from_numpy(positions_3BL),
        torch.from_numpy(labels_BL),
        _by_size(rows, pictures, truths, length, cell),
    )


def _rounded_up(number: int) -> int:
    """To the next multiple of 16: oneDNN compiles its bf16 products anew for every size it meets,
    which took longer than the products themselves."""
    return -(-number // 16) * 16


def _by_size(
    rows: Sequence[_Row],
    pictures: Sequence[Sequence[np.ndarray]],
    truths: Sequence[Sequence[Sequence[int]]] | None,
    length: int,
    cell: int,
) -> tuple[Pictures, ...]:
    found: list[tuple[tuple[int, ...], np.ndarray, int, Sequence[int]]] = []
    for i, (row, own) in enumerate(zip(rows, pictures, strict=True)):
        for k, (picture, first) in enumerate(zip(own, row.starts, strict=True)):
            truth = truths[i][k] if truths else ()
            found.append((picture.shape, picture, i * length + first, truth))
    groups = []
    for shape, members in groupby(sorted(found, key=lambda item: item[0]), lambda item: item[0]):
        _, pixels, firsts, truth = zip(*members, strict=True)
        num_tokens = (shape[0] // cell) * (shape[1] // cell)
        slots_NK = torch.tensor(firsts)[:, None] + torch.arange(num_tokens)
        pixels_NHWC = torch.from_numpy(np.stack(pixels))
        groups.append(Pictures(pixels_NHWC, slots_NK, torch.tensor(truth)))
    return tuple(groups)


def patches_of(pixels_NHWC: Tensor, patch: int, merge: int) -> Tensor:
    """What Qwen's image processor makes of pictures: fp32 [N, P, C], the patches of one token in a
    row, each picture doubled in time. Sides must be multiples of patch * merge."""
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    x_NHWC = (pixels_NHWC.float() / 255 - mean) / std
    num, height, width, _ = x_NHWC.shape
    grid_h, grid_w = height // (patch * merge), width // (patch * merge)
    x = x_NHWC.view(num, grid_h, merge, patch, grid_w, merge, patch, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # picture, token row, column, patch row, column, C, h, w
    x = x.unsqueeze(6).expand(*x.shape[:6], 2, patch, patch)
    return x.reshape(num, grid_h * grid_w * merge * merge, 3 * 2 * patch * patch)


@lru_cache(maxsize=8)
def _window_plan(grid: tuple[int, int], merge: int, window: int, patch: int) -> tuple[Tensor, ...]:
    """For one picture: rotary positions [2 or P, …] as upstream, order of its tokens by window, and
    a mask [P, P] that is 0 within a window and -inf across."""
    grid_13 = torch.tensor([[1, *grid]])
    positions = get_vision_position_ids(grid_13, merge, kwargs={})
    order, bounds = get_vision_window_index(
        grid_13, spatial_merge_size=merge, window_size=window, patch_size=patch, kwargs={}
    )
    bounds = torch.as_tensor(bounds)
    owner = torch.bucketize(torch.arange(grid[0] * grid[1]), bounds, right=True)
    mask_PP = torch.zeros(len(owner), len(owner))
    mask_PP[owner[:, None] != owner[None, :]] = float("-inf")
    return positions, torch.as_tensor(order), mask_PP


def see(model: Qwen2_5_VLForConditionalGeneration, pixels_NHWC: Tensor) -> Tensor:
    """The vision tower on pictures of one size in one batch, [N, K, D].

    Upstream runs its attention picture by picture in a Python loop; this is the same arithmetic
    over a batch dimension (its equality is tested), several times faster for small pictures.
    """
    visual = model.model.visual
    config = visual.config
    num_real = len(pixels_NHWC)
    spare = _rounded_up(num_real) - num_real
    pixels_NHWC = F.pad(pixels_NHWC, (0, 0, 0, 0, 0, 0, 0, spare))
    merge, patch = config.spatial_merge_size, config.patch_size
    grid = (pixels_NHWC.shape[1] // patch, pixels_NHWC.shape[2] // patch)
    positions, order, window_PP = _window_plan(grid, merge, config.window_size, patch)
    patches_NPC = patches_of(pixels_NHWC, patch, merge).to(visual.patch_embed.proj.weight.device)
    x_NPD = F.linear(patches_NPC, visual.patch_embed.proj.weight.flatten(1))
    num, num_patches, dim = x_NPD.shape
    unit = merge * merge
    x_NPD = x_NPD.view(num, -1, unit, dim)[:, order].reshape(num, num_patches, dim)
    rotary = visual.rotary_pos_emb(x_NPD, positions)
    cos, sin = (r.view(-1, unit, r.shape[-1])[order].reshape(num_patches, -1) for r in rotary)
    for number, block in enumerate(visual.blocks):
        mask = None if number in config.fullatt_block_indexes else window_PP
        h_NPD = block.norm1(x_NPD)
        x_NPD = x_NPD + _vision_attention(block.attn, h_NPD, cos, sin, mask)
        x_NPD = x_NPD + block.mlp(block.norm2(x_NPD))
    seen_NKD = visual.merger(x_NPD.reshape(-1, dim)).view(num, num_patches // unit, -1)
    return seen_NKD[:num_real, torch.argsort(order)]


def _vision_attention(
    attention: Any, x_NPD: Tensor, cos: Tensor, sin: Tensor, mask_PP: Tensor | None
) -> Tensor:
    num, num_patches, dim = x_NPD.shape
    heads = attention.num_heads
    qkv = attention.qkv(x_NPD).view(num, num_patches, 3, heads, dim // heads)
    q, k, v = qkv.unbind(2)
    q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = q @ k.mT * attention.scaling
    if mask_PP is not None:
        scores = scores + mask_PP
    weights = torch.softmax(scores.float(), -1).to(v.dtype)
    return attention.proj((weights @ v).transpose(1, 2).reshape(num, num_patches, dim))


def read(
    model: Qwen2_5_VLForConditionalGeneration, batch: TalkBatch
) -> tuple[Tensor, list[Tensor]]:
    """Last hidden states [B, L, D] of whole conversations, and the tower's tokens by size."""
    seen = [see(model, group.pixels_NHWC) for group in batch.pictures]
    words = model.model.language_model
    x_BLD = words.embed_tokens(batch.ids_BL)
    flat_XD = x_BLD.flatten(0, 1)
    for group, seen_NKD in zip(batch.pictures, seen, strict=True):
        flat_XD = flat_XD.index_copy(
            0, group.slots_NK.flatten(), seen_NKD.flatten(0, 1).to(flat_XD.dtype)
        )
    out = words(
        inputs_embeds=flat_XD.view_as(x_BLD),
        attention_mask=batch.mask_BL,
        position_ids=batch.positions_3BL,
        use_cache=False,
    )
    return out.last_hidden_state, seen


@torch.no_grad()
def tokens_batch(
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
    config: VLMConfig,
    rows: Sequence[tuple[str, Sequence[np.ndarray], Sequence[str]]],
) -> tuple[Tensor, Tensor]:
    """`engine.vlm.VLM.tokens` for many (text, pictures, names) at once: fp32 [B, V, D] with zeros
    as padding, and bool [B, V]."""
    turns = [
        f"<|im_start|>user\n {content(text, names, len(pictures))}<|im_end|>"
        for text, pictures, names in rows
    ]
    batch = collate(turns, [pictures for _, pictures, _ in rows], tokenizer, config)
    x_BVD, _ = read(model, batch)
    mask_BV = batch.mask_BL.bool()
    return x_BVD.float() * mask_BV[..., None], mask_BV
