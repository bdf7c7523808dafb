"""The umT5 text encoder behind a small door: prompts to zero-padded features, spans to tags.

Legend: B prompts, T text_len token slots, L the batch's own longest prompt, S subjects, D d_model.
The features beyond a prompt's last token are zeros, and the DiT attends to them, as Wan does
(Wan2.1 `t5.py` end of `T5EncoderModel.__call__`, `model.py` text padding in `WanModel.forward`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from engine.presets import TextConfig
from engine.spec import Span
from engine.weights import CPU, fill, without_contents

PAD_ID, EOS_ID = 0, 1


def build_text_model(config: TextConfig) -> UMT5EncoderModel:
    """transformers' umT5 encoder with fresh weights; dropout is off, it is never wanted here."""
    umt5 = UMT5Config(
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        d_kv=config.d_kv,
        d_ff=config.d_ff,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        dropout_rate=0.0,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
    )
    # Short prompts: the plain products are faster than SDPA with umT5's additive bias.
    umt5._attn_implementation = "eager"
    return UMT5EncoderModel(umt5)


def token_mask(encoding: Encoding, spans: Sequence[Span], length: int) -> list[float]:
    """1 for each of the first `length` tokens that shares a character with one of the spans."""
    offsets = encoding.offsets[:length]
    hits = [
        any(max(start, a) < min(end, b) for a, b in spans) if end > start else False
        for start, end in offsets
    ]
    return [float(hit) for hit in hits] + [0.0] * (length - len(hits))


class TextEncoder:
    """Prompts in, features out. Holds weights and the tokenizer, nothing of any request."""

    def __init__(self, model: UMT5EncoderModel, tokenizer: Tokenizer, config: TextConfig) -> None:
        upstream: Any = model  # a class without types
        self.model = upstream.eval().requires_grad_(False)
        # As Wan's does, it cuts before the end token is put on: a long text keeps one.
        tokenizer.enable_truncation(config.text_len)
        self.tokenizer = tokenizer
        self.config = config

    @classmethod
    def from_files(
        cls,
        weights: Path,
        tokenizer: Path,
        config: TextConfig,
        device: torch.device = CPU,
        dtype: torch.dtype = torch.float32,
    ) -> TextEncoder:
        """Raises CheckpointError when the weights do not fit `config`."""
        with without_contents():
            model = build_text_model(config)
        fill(model, Path(weights), device, lambda name: dtype)
        return cls(model, Tokenizer.from_file(str(tokenizer)), config)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Features of each text, [B, text_len, D], zero behind the text's end token."""
        return self.encode_with_tags(texts, [()] * len(texts))[0]

    def span_features(self, text: str, spans: Sequence[Sequence[Span]]) -> Tensor:
        """One tag per subject, [S, D]: the mean feature over all tokens of all its mentions.

        A subject whose mentions were cut off with the text's tail gets a tag of zeros.
        """
        return self.encode_with_tags([text], [spans])[1][0]

    @torch.no_grad()
    def encode_with_tags(
        self, texts: Sequence[str], spans: Sequence[Sequence[Sequence[Span]]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Features [B, text_len, D] and per text its subjects' tags [S, D], in one forward."""
        encodings = self.tokenize(texts)
        length = max(len(encoding.ids) for encoding in encodings)
        device = self.model.device
        ids_BL, mask_BL = padded_ids(encodings, length)
        ids_BL, mask_BL = ids_BL.to(device), mask_BL.to(device)
        features_BLD = self.model(input_ids=ids_BL, attention_mask=mask_BL).last_hidden_state
        features_BLD = features_BLD.float() * mask_BL[..., None]
        tags = [
            pool(features_LD, encoding, subject_spans)
            for features_LD, encoding, subject_spans in zip(
                features_BLD, encodings, spans, strict=True
            )
        ]
        room = self.config.text_len - length
        return nn.functional.pad(features_BLD, (0, 0, 0, room)), tags

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokens of each text with its end token, at most text_len of them: the rest is cut off."""
        encodings: list[Encoding] = self.tokenizer.encode_batch(list(texts))
        return encodings


def padded_ids(encodings: Sequence[Encoding], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = a token), both int64 [B, length]."""
    ids = [encoding.ids + [PAD_ID] * (length - len(encoding.ids)) for encoding in encodings]
    mask = [[1] * len(e.ids) + [0] * (length - len(e.ids)) for e in encodings]
    return torch.tensor(ids), torch.tensor(mask)


def pool(features_LD: Tensor, encoding: Encoding, spans: Sequence[Sequence[Span]]) -> Tensor:
    """Mean feature per subject over the tokens of its spans, [S, D]; zeros without a token."""
    length = features_LD.shape[0]
    masks = [token_mask(encoding, subject, length) for subject in spans]
    mask_SL = torch.tensor(masks, device=features_LD.device).view(len(spans), length)
    return mask_SL @ features_LD / mask_SL.sum(1, keepdim=True).clamp_min(1.0)
