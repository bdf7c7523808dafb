"""Builds the miniature's two tokenizers: umT5's kind for the text encoder, Qwen's for the VLM.

Both write every word of the world's grammar as one token, and fall back to characters and bytes,
so that any user's words (unknown names, any script) can be said. Both fold case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from training.world.caption import NAMES, caption
from training.world.scene import MAX_SUBJECTS, sample_scene

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
TEXT_SPECIALS = (PAD, EOS, UNK)
# In the order of Qwen's own tokenizer; the first pads, as there.
VLM_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)
_SPACE = "▁"  # how SentencePiece writes a space
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CHARACTERS = _LETTERS + "0123456789_-'.,;:!?()@#&/\""
_WORD = re.compile(r"[a-z-]+|[0-9]|[^\w\s]")
# Log-probabilities of Unigram pieces: whole words win over pairs, pairs over characters.
_WORD_SCORE, _PAIR_SCORE, _CHARACTER_SCORE = -4.0, -9.0, -10.0


def grammar_words(num_captions: int = 3000) -> tuple[str, ...]:
    """Every word and mark of the caption grammar, most frequent first; names are left out."""
    counts: Counter[str] = Counter()
    for seed in range(num_captions):
        rng = np.random.default_rng((seed, 23))
        words = caption(sample_scene(rng, 1 + seed % MAX_SUBJECTS), rng, "descriptions")
        counts.update(_WORD.findall(words.text))
    return tuple(word for word, _ in counts.most_common())


def build_text_tokenizer(vocab_size: int, words: Iterable[str]) -> Tokenizer:
    """A Unigram tokenizer like umT5's: pad 0, eos 1, unk 2, SentencePiece spaces, byte fallback.

    Raises:
        ValueError: `vocab_size` does not hold the words, the characters and the 256 bytes.
    """
    pieces: dict[str, float] = dict.fromkeys(TEXT_SPECIALS, 0.0)
    pieces |= {f"<0x{byte:02X}>": -20.0 for byte in range(256)}
    pieces |= {_SPACE + word: _WORD_SCORE for word in words}
    single = [_SPACE, *_CHARACTERS, *(_SPACE + letter for letter in _LETTERS)]
    for piece in single:
        pieces.setdefault(piece, _CHARACTER_SCORE)
    if len(pieces) > vocab_size:
        raise ValueError(f"vocab_size={vocab_size}: {len(pieces)} pieces cannot be done without")
    for piece in _pairs_of_names():
        if len(pieces) < vocab_size:
            pieces.setdefault(piece, _PAIR_SCORE)
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "),
         normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
         pre_tokenizers.Split(Regex("[,;.!?]"), "isolated")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", special_tokens=[(EOS, TEXT_SPECIALS.index(EOS))]
    )
    tokenizer.add_special_tokens(list(TEXT_SPECIALS))
    return tokenizer


def _pairs_of_names() -> list[str]:
    """Two-letter pieces of common given names, most frequent first: fewer tokens for a name."""
    counts: Counter[str] = Counter()
    for name in NAMES:
        counts[_SPACE + name[:2]] += 2
        counts.update(name[i : i + 2] for i in range(1, len(name) - 1))
    # The rest of the table: any two letters that are easily spoken.
    vowels = "aeiouy"
    spoken = [a + b for a in _LETTERS for b in _LETTERS if (a in vowels) != (b in vowels)]
    ranked = [pair for pair, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    return ranked + spoken


def build_vlm_tokenizer(vocab_size: int, words: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer like Qwen's, with its special tokens as ids 0 to 6.

    Raises:
        ValueError: `vocab_size` is too small to give every word a token of its own.
    """
    # The byte-level pattern cuts at hyphens, so "two-tone" is three tokens whatever is learned.
    words = sorted({part for word in words for part in word.split("-") if part})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(VLM_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # Words repeat until each is merged whole before any pair that only names hold.
    corpus = [*[" ".join(words)] * 1000, *NAMES]
    tokenizer.train_from_iterator(corpus, trainer)
    split = [word for word in words if len(tokenizer.encode(word).ids) > 1]
    if split:
        raise ValueError(f"vocab_size={vocab_size}: too small, {split[:5]} are not single tokens")
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer
