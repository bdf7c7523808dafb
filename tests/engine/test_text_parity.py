"""umT5's encoder against the equations of Wan2.1 `wan/modules/t5.py`, written out here.

Tiny random weights under the original's names, every parameter random, fp32. The original file
itself is run by `bench.original`.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engine.presets import WAN_1_3B, TextConfig
from engine.text import TextEncoder, build_text_model
from engine.upstream import text_names
from engine.weights import fill
from tests.engine import upstream_tables
from tests.engine.conftest import SPECIALS, byte_tokenizer
from tests.engine.test_parity import error

CONFIG: TextConfig = replace(
    WAN_1_3B.text, vocab_size=300, d_model=32, num_layers=3, num_heads=4, d_kv=8, d_ff=48
)
BUCKETS, FARTHEST = 32, 128
BOUND = 1e-5


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Under the original's names. The original's key and value width is its model's."""
    table = upstream_tables.umt5(
        CONFIG.vocab_size, CONFIG.d_model, CONFIG.d_ff, CONFIG.num_layers, CONFIG.num_heads, BUCKETS
    )
    generator = torch.Generator().manual_seed(11)
    return {
        name: torch.randn(shape, generator=generator) * (1.0 if len(shape) == 1 else 0.4)
        for name, shape in table.items()
    }


@pytest.fixture(scope="module")
def encoder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    path = tmp_path_factory.mktemp("umt5") / "text.safetensors"
    save_file(text_names(weights), path)
    model = build_text_model(CONFIG)
    fill(model, path, torch.device("cpu"), lambda name: torch.float32)
    return TextEncoder(model, byte_tokenizer(SPECIALS, end="</s>"), CONFIG)


def norm(x: Tensor, weight: Tensor) -> Tensor:
    """x over its root mean square: no mean is taken off, nothing is added."""
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def bucket(distance: int) -> int:
    """Of a key so many places behind the query: exact near by, logarithmic further off, half of
    the buckets for each side."""
    side = BUCKETS // 2
    first = side if distance > 0 else 0
    near, far = side // 2, abs(distance)
    if far < near:
        return first + far
    share = math.log(far / near) / math.log(FARTHEST / near)
    return first + min(side - 1, near + int(share * (side - near)))


def original(weights: dict[str, Tensor], ids_L: Tensor) -> Tensor:
    """Features [L, D] of a prompt without pads. Scores are not scaled."""
    x, length, heads = weights["token_embedding.weight"][ids_L], len(ids_L), CONFIG.num_heads
    buckets_LK = torch.tensor([[bucket(k - q) for k in range(length)] for q in range(length)])
    for number in range(CONFIG.num_layers):
        own = {
            name.removeprefix(f"blocks.{number}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{number}.")
        }
        y = norm(x, own["norm1.weight"])
        q, k, v = ((y @ own[f"attn.{name}.weight"].T).view(length, heads, -1) for name in "qkv")
        bias_NLK = own["pos_embedding.embedding.weight"][buckets_LK].permute(2, 0, 1)
        share_NLK = (torch.einsum("lnd,knd->nlk", q, k) + bias_NLK).softmax(-1)
        y = torch.einsum("nlk,knd->lnd", share_NLK, v).flatten(1)
        x = x + y @ own["attn.o.weight"].T
        y = norm(x, own["norm2.weight"])
        gate = F.gelu(y @ own["ffn.gate.0.weight"].T, approximate="tanh")
        x = x + (gate * (y @ own["ffn.fc1.weight"].T)) @ own["ffn.fc2.weight"].T
    return norm(x, weights["norm.weight"])


def originals_ids(text: str) -> Tensor:
    """As `wan/modules/tokenizers.py` calls its tokenizer; a long text is cut, and has its end."""
    words = byte_tokenizer(SPECIALS, end="</s>")
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    held = fast([text], return_tensors="pt", padding="max_length", truncation=True, max_length=512,
                add_special_tokens=True)  # fmt: skip
    ids_L: Tensor = held.input_ids[0][: int(held.attention_mask.sum())]
    assert len(ids_L) == min(len(text) + 1, 512) and ids_L[-1] == 1
    return ids_L


@pytest.mark.parametrize("length", [0, 1, 7, 20, 77, 300, 510, 511, 512, 600])
def test_features_are_the_originals_and_pads_are_zeros(
    encoder: TextEncoder, weights: dict[str, Tensor], length: int
) -> None:
    text = "".join(chr(97 + (7 * n + n * n) % 26) for n in range(length))
    ids_L = originals_ids(text)
    got = encoder.encode([text])[0]
    assert got.shape == (512, 32) and not got[len(ids_L) :].any()
    assert error(got[: len(ids_L)], original(weights, ids_L)) <= BOUND


def test_company_changes_nothing(encoder: TextEncoder, weights: dict[str, Tensor]) -> None:
    texts = ["a", "longer " * 11, "x" * 511]
    for text, features_TM in zip(texts, encoder.encode(texts), strict=True):
        ids = encoder.tokenize([text])[0].ids
        assert error(features_TM[: len(ids)], original(weights, torch.tensor(ids))) <= BOUND


@pytest.mark.parametrize(
    "name",
    [
        "token_embedding.weight",
        "blocks.0.norm1.weight",
        "blocks.1.ffn.gate.0.weight",
        "blocks.2.pos_embedding.embedding.weight",
    ],
)
def test_the_bound_sees_every_part(
    encoder: TextEncoder, weights: dict[str, Tensor], name: str
) -> None:
    """A thousandth more of one tensor is far outside."""
    ids = torch.tensor(encoder.tokenize(["anna waves"])[0].ids)
    other = weights | {name: weights[name] * 1.001}
    assert error(original(other, ids), original(weights, ids)) > 2 * BOUND
