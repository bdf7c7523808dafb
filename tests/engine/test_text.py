"""The text door: zero pads, and tags that are means over a subject's own tokens."""

import pytest
import torch

from engine.text import TextEncoder, pool, token_mask
from tests.engine.conftest import TOY_PRESET, random_encoders

TEXT, ANNA = "anna and bob, anna", ((0, 4), (14, 18))


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return random_encoders().text


def test_features_are_zero_behind_the_end_token(encoder):
    features_BTM = encoder.encode(["anna", "anna waves"])
    assert features_BTM.shape == (2, 24, 32) and features_BTM.dtype == torch.float32
    # One token a byte, and the end token.
    assert features_BTM[0, 5:].abs().max() == 0 and features_BTM[0, 4].abs().max() > 0
    assert features_BTM[1, 11:].abs().max() == 0 and features_BTM[1, 10].abs().max() > 0


def test_the_empty_prompt_is_its_end_token(encoder):
    features_TM = encoder.encode([""])[0]
    assert features_TM[0].abs().max() > 0 and features_TM[1:].abs().max() == 0


def test_a_text_does_not_depend_on_its_batch(encoder):
    alone = encoder.encode(["anna"])[0]
    beside = encoder.encode(["anna", "a much longer text"])[0]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_a_tag_is_the_mean_over_all_mentions(encoder):
    features_TM = encoder.encode([TEXT])[0]
    want = features_TM[[0, 1, 2, 3, 14, 15, 16, 17]].mean(0)
    (tag,) = encoder.span_features(TEXT, [ANNA])
    torch.testing.assert_close(tag, want, rtol=1e-5, atol=1e-6)


def test_mentions_cut_off_give_a_tag_of_zeros(encoder):
    text = "x" * 30 + "anna"
    features_TM = encoder.encode([text])[0]
    assert features_TM.shape == (24, 32) and features_TM[-1].abs().max() > 0
    assert encoder.span_features(text, [((30, 34),)]).abs().max() == 0


def test_tokens_that_touch_a_span_count(encoder):
    (encoding,) = encoder.tokenize(["anna"])
    assert token_mask(encoding, [(1, 3)], 4) == [0, 1, 1, 0]
    assert token_mask(encoding, [(0, 0)], 4) == [0, 0, 0, 0]
    assert pool(torch.ones(5, 2), encoding, []).shape == (0, 2)


def test_full_size_is_umt5_xxl():
    from engine.presets import WAN_1_3B
    from engine.text import build_text_model

    with torch.device("meta"):
        model = build_text_model(WAN_1_3B.text)
    assert sum(p.numel() for p in model.parameters()) == 5_680_910_336
    assert TOY_PRESET.text.text_len == 24
