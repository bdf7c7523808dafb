"""The tokenizers: every word of the grammar is one token, and nothing is beyond words."""

import pytest
from tokenizers import Tokenizer

from engine.presets import MINIATURE
from training.text import text_tokenizer
from training.tokenizers import (
    TEXT_SPECIALS,
    VLM_SPECIALS,
    build_text_tokenizer,
    build_vlm_tokenizer,
    grammar_words,
)
from training.vlm import vlm_tokenizer
from training.vlm_data import EXTRA_WORDS

STRANGE = ("Ürsula waves", "бob и 李 hop", "x7 & O'Neil: 100% 😀", "a\tb\n c")


@pytest.fixture(scope="module")
def text() -> Tokenizer:
    return text_tokenizer(MINIATURE.text)


@pytest.fixture(scope="module")
def vlm() -> Tokenizer:
    return vlm_tokenizer(MINIATURE.vlm)


def test_they_fill_no_more_than_the_models_embeddings(text: Tokenizer, vlm: Tokenizer) -> None:
    assert text.get_vocab_size() <= MINIATURE.text.vocab_size
    assert vlm.get_vocab_size() <= MINIATURE.vlm.vocab_size


def test_text_specials_are_where_umt5_has_them(text: Tokenizer) -> None:
    assert [text.token_to_id(token) for token in TEXT_SPECIALS] == [0, 1, 2]
    assert text.encode("walks").ids[-1] == 1
    assert text.encode("").ids == [1]


def test_every_grammar_word_is_one_text_token(text: Tokenizer) -> None:
    for word in grammar_words(500):
        said = f"the {word}" if word.isalpha() or "-" in word else f"the{word}"
        assert len(text.encode(said).ids) == 3, word


def test_every_word_of_the_vlm_is_one_token(vlm: Tokenizer) -> None:
    for word in [*grammar_words(500), *EXTRA_WORDS]:
        parts = [part for part in word.split("-") if part] or [word]
        for part in parts:
            assert len(vlm.encode(f"the {part}").ids) == 2, part


def test_control_tokens_are_single_and_not_confused_with_words(vlm: Tokenizer) -> None:
    for number, token in enumerate(VLM_SPECIALS):
        assert vlm.encode(token).ids == [number]
    encoding = vlm.encode("walks<|image_pad|>left")
    assert [encoding.tokens[i] for i in (0, 1, 2)] == ["Ġwalks", "<|image_pad|>", "Ġleft"]


@pytest.mark.parametrize("words", STRANGE)
def test_anything_can_be_said_and_read_back(words: str, text: Tokenizer, vlm: Tokenizer) -> None:
    said = " ".join(words.lower().split())
    assert text.decode(text.encode(words).ids).strip() == said
    assert 2 not in text.encode(words).ids
    assert vlm.decode(vlm.encode(words).ids).strip() == words.lower()


@pytest.mark.parametrize("words", STRANGE)
def test_offsets_point_into_the_words(words: str, text: Tokenizer) -> None:
    encoding = text.encode(words)
    covered = {i for start, end in encoding.offsets for i in range(start, end)}
    assert {i for i, letter in enumerate(words) if not letter.isspace()} <= covered


def test_case_is_folded(text: Tokenizer, vlm: Tokenizer) -> None:
    assert text.encode("The GREEN star").ids == text.encode("the green star").ids
    assert vlm.encode("The GREEN star").ids == vlm.encode("the green star").ids


def test_too_small_a_vocabulary_is_refused() -> None:
    words = grammar_words(100)
    with pytest.raises(ValueError, match="vocab_size=300"):
        build_text_tokenizer(300, words)
    with pytest.raises(ValueError, match="vocab_size=300"):
        build_vlm_tokenizer(300, words)


def test_building_twice_gives_the_same(text: Tokenizer, vlm: Tokenizer) -> None:
    assert text_tokenizer(MINIATURE.text).to_str() == text.to_str()
    assert vlm_tokenizer(MINIATURE.vlm).to_str() == vlm.to_str()
