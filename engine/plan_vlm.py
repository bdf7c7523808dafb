"""Qwen2.5-VL's part of a plan: how many tokens it reads, and its forward without contents.

Its own forward looks into what it is given (where pictures stand among the words), which meta
tensors cannot answer. So its halves are run one after the other as it runs them: the tower over all
pictures, whose sizes are real numbers, then the language model over as many tokens.

Legend: P patches, N pictures, V tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from engine.presets import VLMConfig

PROMPT_TOKENS = 200  # of a long prompt, beside its pictures
LEAST_TOKENS = 8  # to which `VLM.cut` may cut it


def patches(config: VLMConfig, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of patches of a picture of so many px, as `build_processor` resizes it."""
    cell = config.patch_size * config.merge_size
    least, most = 4 * cell**2, config.vlm_len // 3 * cell**2
    sides = smart_resize(height, width, factor=cell, min_pixels=least, max_pixels=most)
    return sides[0] // config.patch_size, sides[1] // config.patch_size


def vlm_tokens(config: VLMConfig, num_pictures: int, height: int, width: int) -> int:
    """Tokens of a user turn with a long prompt and pictures of this size."""
    rows, columns = patches(config, height, width)
    seen = num_pictures * rows * columns // config.merge_size**2
    return seen + max(min(PROMPT_TOKENS, config.vlm_len - seen), LEAST_TOKENS)


def read(
    model: Qwen2_5_VLForConditionalGeneration,
    config: VLMConfig,
    num_pictures: int,
    height: int,
    width: int,
) -> Tensor:
    """Last hidden states [1, V, D] of such a turn, on meta as the model is."""
    upstream: Any = model.model  # a class without types
    rows, columns = patches(config, height, width)
    num, length = num_pictures * rows * columns, vlm_tokens(config, num_pictures, height, width)
    with torch.device("meta"):
        pixels = torch.empty(num, 3 * 2 * config.patch_size**2)  # two frames of a still
        places = torch.empty(num, 2, dtype=torch.long)
        ids = torch.empty(1, length, dtype=torch.long)
    grid_N3 = torch.tensor([[1, rows, columns]] * num_pictures)
    # Kept as the whole forward keeps it, until the language model is done.
    seen = upstream.visual(pixels.to(model.dtype), grid_thw=grid_N3, position_ids=places)
    read: Tensor = upstream.language_model(
        inputs_embeds=upstream.get_input_embeddings()(ids),
        position_ids=ids.expand(3, 1, length),
        attention_mask=torch.ones_like(ids),
    ).last_hidden_state
    del seen
    return read
