"""Qwen2.5-VL behind a small door: what it makes of a prompt and pictures, and what it says of them.

The user turn is the prompt, then each subject's name with its picture, so that the picture's tokens
(the model is causal) already know what their subject is to do. Everything goes through
transformers' own processor, built here from objects: nothing is read but what the caller names.

Legend: V tokens of a user turn, D hidden size, B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from engine.errors import EncodingError
from engine.presets import VLMConfig
from engine.weights import CPU, fill, without_contents

Picture = np.ndarray | Image

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
MAX_ANSWER_TOKENS = 96


def content(text: str, names: Sequence[str], num_pictures: int, question: str = "") -> str:
    """A user's words: the prompt, then named pictures, then nameless ones (frames), a question.

    `names[i]` belongs to picture i; pictures beyond the names stand without one.
    """
    named = [f"{_plain(name)}{PICTURE}" for name in names]
    rest = PICTURE * (num_pictures - len(names))
    return " ".join(part for part in (_plain(text), *named, rest, _plain(question)) if part)


def _plain(words: str) -> str:
    """Words of a user never hold control tokens: "<|" is taken apart."""
    return words.replace("<|", "< |")


def conversation(words: str, answer: str | None = None) -> str:
    """Qwen's chat form of one user turn, open for the answer, or with it."""
    turn = f"<|im_start|>user\n {words}<|im_end|><|im_start|>assistant\n"
    return turn if answer is None else f"{turn} {answer}<|im_end|>"


def build_vlm(config: VLMConfig, token_ids: dict[str, int]) -> Qwen2_5_VLForConditionalGeneration:
    """transformers' Qwen2.5-VL with fresh weights; `token_ids` of the special tokens."""
    qwen = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(config.mrope_section),
            },
            bos_token_id=token_ids["<|im_start|>"],
            eos_token_id=token_ids["<|im_end|>"],
            pad_token_id=token_ids["<|endoftext|>"],
        ),
        vision_config=dict(
            depth=config.vision_depth,
            hidden_size=config.vision_hidden_size,
            intermediate_size=config.vision_intermediate_size,
            num_heads=config.vision_num_heads,
            patch_size=config.patch_size,
            window_size=config.window_size,
            fullatt_block_indexes=list(config.full_attention_blocks),
            spatial_merge_size=config.merge_size,
            out_hidden_size=config.hidden_size,
        ),
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    # On short sequences and narrow heads plain products beat SDPA several times over on a CPU.
    qwen._attn_implementation = "eager"
    return Qwen2_5_VLForConditionalGeneration(qwen)


class _PictureProcessor(Qwen2_5_VLProcessor):
    """Qwen's processor without its video half, which would need torchvision."""

    def __init__(self, image_processor: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        # Past Qwen's own constructor, which asks for a video processor; upstream has no types.
        skip: Any = ProcessorMixin.__init__
        skip(self, image_processor, tokenizer)


def build_processor(config: VLMConfig, tokenizer: Tokenizer) -> Qwen2_5_VLProcessor:
    """Words and pictures to model input; a picture gets 4 to vlm_len / 3 tokens, by its size."""
    cell = (config.patch_size * config.merge_size) ** 2
    images = Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        merge_size=config.merge_size,
        size={"shortest_edge": 4 * cell, "longest_edge": config.vlm_len // 3 * cell},
    )
    fast: Any = PreTrainedTokenizerFast
    words = fast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
    )
    return _PictureProcessor(images, words)


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of Qwen's special tokens.

    Raises:
        EncodingError: the tokenizer lacks one.
    """
    ids: dict[str, int] = {}
    for token in SPECIALS:
        number = tokenizer.token_to_id(token)
        if number is None:
            raise EncodingError(f"the VLM's tokenizer has no {token}")
        ids[token] = number
    return ids


class VLM:
    """Prompts and pictures in, tokens or words out. Holds weights, nothing of any request."""

    def __init__(
        self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Tokenizer, config: VLMConfig
    ) -> None:
        upstream: Any = model  # a class without types
        self.model = upstream.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.processor = build_processor(config, tokenizer)
        self.config = config

    @classmethod
    def from_files(
        cls,
        weights: Path,
        tokenizer: Path,
        config: VLMConfig,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> VLM:
        """Raises CheckpointError when the weights do not fit `config`."""
        words = Tokenizer.from_file(str(tokenizer))
        with without_contents():
            model = build_vlm(config, special_ids(words))
        fill(model, Path(weights), device, lambda name: dtype)
        return cls(model, words, config)

    @torch.no_grad()
    def tokens(self, text: str, pictures: Sequence[Picture], names: Sequence[str] = ()) -> Tensor:
        """Last hidden states of the user turn, [V, D]: the prompt's tokens, then the pictures'."""
        words = content(self.cut(text, len(pictures)), names, len(pictures))
        turn = f"<|im_start|>user\n {words}<|im_end|>"
        hidden_BVD: Tensor = self.model.model(**self._inputs(turn, pictures)).last_hidden_state
        return hidden_BVD[0].float()

    @torch.no_grad()
    def describe(
        self,
        pictures: Sequence[Picture],
        question: str,
        *,
        text: str = "",
        names: Sequence[str] = (),
    ) -> str:
        """The most likely answer to a question about the pictures (of a prompt, if given)."""
        turn = conversation(content(text, names, len(pictures), question))
        inputs = self._inputs(turn, pictures)
        ids_BV = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=MAX_ANSWER_TOKENS, use_cache=True
        )
        answer = ids_BV[0, inputs["input_ids"].shape[1] :].tolist()
        return self.tokenizer.decode(answer, skip_special_tokens=True).strip()

    def _inputs(self, turn: str, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        images = list(pictures) or None
        inputs = self.processor(text=[turn], images=images, return_tensors="pt")
        return dict(inputs.to(self.model.device))

    def cut(self, text: str, num_pictures: int) -> str:
        """The text without the tail for which vlm_len has no room beside the pictures."""
        cell = self.config.patch_size * self.config.merge_size
        room = self.config.vlm_len - 8 - num_pictures * ((64 // cell) ** 2 + 10)
        text = _plain(text)
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        if len(encoding.ids) <= max(room, 8):
            return text
        return text[: encoding.offsets[max(room, 8)][0]]
