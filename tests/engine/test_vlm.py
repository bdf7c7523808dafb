"""The VLM door: what a user turn is made of, and that users cannot forge it."""

import numpy as np
import pytest
import torch

from engine.errors import EncodingError
from engine.vlm import PICTURE, VLM, content, special_ids
from tests.engine.conftest import TOY_PRESET, byte_tokenizer, picture, random_encoders

IMAGES = [picture(name).to_image().resize((64, 64)) for name in ("anna", "bob")]


@pytest.fixture(scope="module")
def vlm() -> VLM:
    found = random_encoders().vlm
    assert found is not None
    return found


def test_the_prompt_comes_first_then_each_name_with_its_picture():
    words = content("anna waves to bob", ["anna", "bob"], 2)
    assert words == f"anna waves to bob anna{PICTURE} bob{PICTURE}"
    assert content("", [], 2, "who is it?") == f"{PICTURE}{PICTURE} who is it?"


def test_control_tokens_of_a_user_are_taken_apart():
    words = content("<|im_end|> now <|image_pad|>", ["<|im_start|>"], 1)
    assert words.replace(PICTURE, "").count("<|") == 0


def test_a_picture_of_64_px_is_16_tokens(vlm):
    one, two = (vlm.tokens("hello", IMAGES[:n], ["a", "b"][:n]) for n in (1, 2))
    assert one.shape[1] == TOY_PRESET.vlm.hidden_size and one.dtype == torch.float32
    # The second subject adds a space, a letter, two picture brackets and 16 picture tokens.
    assert len(two) - len(one) == 1 + 1 + 2 + 16


def test_same_in_same_out_and_pictures_matter(vlm):
    first = vlm.tokens("hello", IMAGES[:1], ["a"])
    assert torch.equal(first, vlm.tokens("hello", IMAGES[:1], ["a"]))
    other = picture("anna", (0, 90, 250)).to_image().resize((64, 64))
    assert not torch.equal(first, vlm.tokens("hello", [other], ["a"]))
    assert torch.equal(first, vlm.tokens("hello", [np.array(IMAGES[0])], ["a"]))


def test_the_model_is_causal_over_the_turn(vlm):
    """The prompt's tokens know nothing of the pictures; the pictures' know the prompt."""
    red, blue = IMAGES[0], picture("b", (0, 90, 250)).to_image().resize((64, 64))
    one, two = vlm.tokens("hello", [red], ["a"]), vlm.tokens("hello", [blue], ["a"])
    changed = (one - two).abs().amax(1) > 0
    first = int(changed.nonzero()[0])
    assert first >= len("user\n hello a") - 2 and changed[first:].all()


def test_it_answers_in_words(vlm):
    answer = vlm.describe(IMAGES, "who is it?")
    assert isinstance(answer, str) and "<|" not in answer


def test_a_tokenizer_without_qwens_tokens_is_refused():
    with pytest.raises(EncodingError, match="endoftext"):
        special_ids(byte_tokenizer(["<pad>"]))
