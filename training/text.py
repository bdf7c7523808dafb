"""Recipe `miniature_text`: the umT5 encoder, trained to know who does what.

Two tasks share the encoder: guess masked tokens of captions, and read each subject's role and
looks from the mean feature over its own span. The readers are linear, so that what a subject does
lies open in the tag that the DiT gets; they are dropped at export.

Legend: B captions, L tokens, S subject slots (4), D d_model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn
from transformers import UMT5EncoderModel

from engine.presets import MINIATURE, TextConfig
from engine.text import build_text_model, padded_ids, token_mask
from training import loop
from training.loop import LoopConfig, Outcome
from training.tokenizers import TEXT_SPECIALS, UNK, build_text_tokenizer, grammar_words
from training.world.caption import Caption, caption
from training.world.identity import FACTORS, Identity
from training.world.scene import (
    BACKGROUNDS,
    LIGHTS,
    MAX_SUBJECTS,
    MOTIONS,
    PLACES,
    Scene,
    sample_scene,
)

IGNORE = -100
MASK_ID = TEXT_SPECIALS.index(UNK)
UNSAID = len(PLACES)
BATCH_SIZES = (128, 80, 56, 40)  # captions of one to four subjects: about as many tokens each
BATCHES_PER_GROUP = 4
MASKED_SHARE = 5  # one caption in so many has tokens hidden, the others are questioned
EMBEDDING_STD = 0.1
# What is read from a subject's span, and how many answers there are.
SUBJECT_READERS = {
    "motion": len(MOTIONS),
    "place": len(PLACES) + 1,
    "turn": MAX_SUBJECTS,
    **{name: len(values) for name, values in FACTORS.items()},
}
# What is read from the mean over the whole caption.
SCENE_READERS = {"background": len(BACKGROUNDS), "light": len(LIGHTS)}
_PLACE = re.compile(r"(?:on|at) the (far left|left|right|far right)\b|in the (middle|center)\b")
_ADJECTIVES = ("", "striped", "barred", "dotted", "checked", "two-tone", "bellied")
_OTHER_LETTERS = "äöüéèçñøåœßąćłžабвгдежикσπλωαשלאמعلم李小王さくら나비"


@dataclass(frozen=True)
class Lesson:
    """A caption and the answers: per reader one value per subject (IGNORE where not said)."""

    text: str
    spans: tuple[tuple[tuple[int, int], ...], ...]
    answers: dict[str, tuple[int, ...]]
    background: int
    light: int


def sample_lesson(rng: np.random.Generator, num_subjects: int, split: str = "train") -> Lesson:
    """A random caption of `num_subjects` with the truth about each of them."""
    scene = sample_scene(rng, num_subjects, split=split)
    style = str(rng.choice(("names", "descriptions", "both"), p=(0.5, 0.25, 0.25)))
    words = caption(scene, rng, style)
    answers = _answers(scene, words, described=style != "names")
    if style != "descriptions" and rng.random() < 0.5:
        words = rename(words, [_any_name(rng) for _ in words.names])
    text = words.text + ("." if rng.random() < 0.3 else "")
    return Lesson(text, words.spans, answers, scene.background, scene.light)


def _any_name(rng: np.random.Generator) -> str:
    """A name that no list holds: any letters, sometimes of other alphabets, digits, case."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pool = letters + (_OTHER_LETTERS if rng.random() < 0.3 else "")
    length = int(rng.integers(2, 9))
    name = "".join(rng.choice(list(pool), length))
    if rng.random() < 0.2:
        name += str(rng.integers(100))
    return name


def rename(words: Caption, names: Sequence[str]) -> Caption:
    """The same caption about others: every span of subject k is rewritten as `names[k]`."""
    order = sorted((span, k) for k, spans in enumerate(words.spans) for span in spans)
    text, read = "", 0
    spans: list[list[tuple[int, int]]] = [[] for _ in words.spans]
    for (start, end), k in order:
        text += words.text[read:start]
        spans[k].append((len(text), len(text) + len(names[k])))
        text, read = text + names[k], end
    text += words.text[read:]
    return replace(
        words, text=text, prompt=text, names=tuple(names), spans=tuple(tuple(s) for s in spans)
    )


def _answers(scene: Scene, words: Caption, described: bool) -> dict[str, tuple[int, ...]]:
    mentions = sorted((span[0], k) for k, spans in enumerate(words.spans) for span in spans)
    first = [min(span[0] for span in spans) for spans in words.spans]
    turns = np.argsort(np.argsort(first))
    answers = {name: [IGNORE] * len(scene.cast) for name in SUBJECT_READERS}
    places = _places_said(words.text, mentions)
    for k, role in enumerate(scene.cast):
        answers["motion"][k] = role.motion
        answers["place"][k] = places.get(k, UNSAID)
        answers["turn"][k] = int(turns[k])
        if described:
            for name, value in _looks_said(role.identity, _clause(words.text, mentions, k)).items():
                answers[name][k] = value
    answers["partner"] = [role.partner if role.partner >= 0 else IGNORE for role in scene.cast]
    return {name: tuple(values) for name, values in answers.items()}


def places_said(words: Caption) -> dict[int, int]:
    """Subject -> the place that the caption gives it, where it gives one."""
    mentions = sorted((span[0], k) for k, spans in enumerate(words.spans) for span in spans)
    return _places_said(words.text, mentions)


def _places_said(text: str, mentions: list[tuple[int, int]]) -> dict[int, int]:
    """Subject -> place that the text gives it: a place belongs to the mention before it."""
    said = {}
    for match in _PLACE.finditer(text):
        before = [k for start, k in mentions if start < match.start()]
        if before:
            said[before[-1]] = PLACES.index(match[1] or "middle")
    return said


def _clause(text: str, mentions: list[tuple[int, int]], subject: int) -> str:
    """The words from the subject's mentions up to the next mention of anybody."""
    starts = [start for start, _ in mentions] + [len(text)]
    return " ".join(
        text[start : starts[i + 1]] for i, (start, k) in enumerate(mentions) if k == subject
    )


def _looks_said(identity: Identity, clause: str) -> dict[str, int]:
    """Factors of the identity that the words of its description tell."""
    said = {}
    adjective = _ADJECTIVES[identity.pattern]
    noun = f"{identity.value('body')} {identity.value('shape')}"
    phrases = {
        "shape": noun,
        "body": noun,
        "pattern": adjective,
        "second": f"{identity.value('second')} {adjective}" if adjective else "",
        "eyes": identity.value("eyes"),
        "mouth": identity.value("mouth") if identity.mouth else "",
        "hat": identity.value("hat") if identity.hat else "",
        "hat_color": f"{identity.value('hat_color')} {identity.value('hat')}",
        "accessory": identity.value("accessory") if identity.accessory else "",
        "accessory_color": f"{identity.value('accessory_color')} {identity.value('accessory')}",
    }
    for name, phrase in phrases.items():
        if phrase and re.search(rf"\b{phrase}\b", clause):
            said[name] = getattr(identity, name)
    return said


@dataclass(frozen=True)
class TextBatch:
    """ids, mask int64 [B, L]; spans_BSL 1 where a token is of a subject; answers int64, [B, S] or
    [B]; labels_BL the hidden tokens' ids, IGNORE elsewhere."""

    ids_BL: Tensor
    mask_BL: Tensor
    spans_BSL: Tensor
    answers: dict[str, Tensor]
    labels_BL: Tensor


def collate(lessons: Sequence[Lesson], tokenizer: Tokenizer, rng: np.random.Generator) -> TextBatch:
    """Lessons as tensors; the first fifth has 15 % of its tokens hidden and is not questioned."""
    encodings: list[Encoding] = tokenizer.encode_batch([lesson.text for lesson in lessons])
    length = max(len(encoding.ids) for encoding in encodings)
    ids_BL, mask_BL = padded_ids(encodings, length)
    spans_BSL = torch.zeros(len(lessons), MAX_SUBJECTS, length)
    shape = (len(lessons), MAX_SUBJECTS)
    answers = {name: torch.full(shape, IGNORE) for name in (*SUBJECT_READERS, "partner")}
    masked = len(lessons) // MASKED_SHARE
    for row, (lesson, encoding) in enumerate(zip(lessons, encodings, strict=True)):
        for k, spans in enumerate(lesson.spans):
            spans_BSL[row, k] = torch.tensor(token_mask(encoding, spans, length))
        for name, values in lesson.answers.items():
            if row >= masked:
                answers[name][row, : len(values)] = torch.tensor(values)
    for name in SCENE_READERS:
        settings = [int(getattr(lesson, name)) for lesson in lessons]
        answers[name] = torch.tensor([IGNORE] * masked + settings[masked:])
    hidden = torch.from_numpy(rng.random(ids_BL.shape) < 0.15) & (mask_BL == 1)
    hidden[masked:] = False
    labels_BL = torch.where(hidden, ids_BL, IGNORE)
    return TextBatch(ids_BL.masked_fill(hidden, MASK_ID), mask_BL, spans_BSL, answers, labels_BL)


class TextStudent(nn.Module):
    """The encoder with its linear readers."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.encoder: UMT5EncoderModel = build_text_model(config)
        # At T5's unit variance a token's own embedding drowns what attention adds for long.
        nn.init.normal_(self.encoder.shared.weight, std=EMBEDDING_STD)
        _look_around(self.encoder)
        readers = SUBJECT_READERS | SCENE_READERS
        self.head = nn.ModuleDict({n: nn.Linear(config.d_model, k) for n, k in readers.items()})
        self.head_partner = nn.Linear(config.d_model, config.d_model, bias=False)

    def features(self, batch: TextBatch) -> Tensor:
        """Token features, fp32 [B, L, D]."""
        out = self.encoder(input_ids=batch.ids_BL, attention_mask=batch.mask_BL)
        return out.last_hidden_state.float()

    def answers(self, features_BLD: Tensor, batch: TextBatch) -> dict[str, Tensor]:
        """Scores of every reader: [B, S, K] from the spans, [B, K] from the whole, and for
        "partner" [B, S, S], who among the caption's subjects."""
        counts_BS1 = batch.spans_BSL.sum(-1, keepdim=True).clamp_min(1)
        tags_BSD = batch.spans_BSL @ features_BLD / counts_BS1
        mask_BL1 = batch.mask_BL[..., None]
        whole_BD = (features_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        scores = {name: self.head[name](tags_BSD) for name in SUBJECT_READERS}
        scores |= {name: self.head[name](whole_BD) for name in SCENE_READERS}
        pairs_BSS = self.head_partner(tags_BSD) @ tags_BSD.mT / tags_BSD.shape[-1] ** 0.5
        absent_BS = batch.spans_BSL.sum(-1) == 0
        impossible = absent_BS[:, None, :] | torch.eye(MAX_SUBJECTS, dtype=torch.bool)
        scores["partner"] = pairs_BSS.masked_fill(impossible, -1e4)
        return scores

    def loss(self, batch: TextBatch) -> dict[str, Tensor]:
        """Cross-entropies: hidden tokens against the tied embedding, and every reader's."""
        features_BLD = self.features(batch)
        hidden_BL = batch.labels_BL != IGNORE
        logits = F.linear(features_BLD[hidden_BL], self.encoder.shared.weight).float()
        words = F.cross_entropy(logits, batch.labels_BL[hidden_BL])
        scores = self.answers(features_BLD, batch)
        losses = {name: _cross_entropy(scores[name], batch.answers[name]) for name in scores}
        roles = losses["motion"] + losses["place"] + losses["turn"] + losses["partner"]
        looks = torch.stack([losses[name] for name in FACTORS]).sum()
        setting = losses["background"] + losses["light"]
        total = words + 2 * roles + 0.5 * looks + setting
        return {"loss": total, "words": words, "roles": roles, "looks": looks, "setting": setting}


@torch.no_grad()
def _look_around(encoder: UMT5EncoderModel) -> None:
    """Starts the relative biases as a sense of place: of every four heads one looks to the left,
    one to the right, one to both sides, nearer more than farther, and one everywhere.

    From T5's near-zero biases, words stay a bag for thousands of steps: measured, who does what
    was at chance after 500.
    """
    blocks: list[Any] = list(encoder.encoder.block.children())
    for block in blocks:
        bias_KH = block.layer[0].SelfAttention.relative_attention_bias.weight
        half = bias_KH.shape[0] // 2  # buckets of the left (and of the token itself), of the right
        near_K = -0.35 * torch.arange(half).float()
        away_K = torch.full((half,), -6.0)
        kinds = (
            torch.cat([near_K, away_K]),
            torch.cat([away_K, near_K]),
            torch.cat([near_K, near_K]),
            torch.zeros(2 * half),
        )
        for head in range(bias_KH.shape[1]):
            bias_KH[:, head] = kinds[head % len(kinds)]


def _cross_entropy(scores: Tensor, answers: Tensor) -> Tensor:
    """Mean over the questions that were asked; 0 when none was."""
    flat = F.cross_entropy(
        scores.flatten(0, -2).float(), answers.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return flat / (answers != IGNORE).sum().clamp_min(1)


@torch.no_grad()
def accuracy(student: TextStudent, batches: Sequence[TextBatch]) -> dict[str, float]:
    """Share of right answers per reader, over all questions asked in the batches."""
    right: dict[str, int] = {}
    asked: dict[str, int] = {}
    for batch in batches:
        for name, scores in student.answers(student.features(batch), batch).items():
            answers = batch.answers[name]
            right[name] = right.get(name, 0) + int((scores.argmax(-1) == answers).sum())
            asked[name] = asked.get(name, 0) + int((answers != IGNORE).sum())
    return {name: right[name] / max(asked[name], 1) for name in right}


def text_tokenizer(config: TextConfig) -> Tokenizer:
    """The tokenizer of this recipe; the same on every machine."""
    return build_text_tokenizer(config.vocab_size, grammar_words())


@lru_cache(maxsize=4)
def _lessons_by_length(group: int, num_subjects: int, split: str) -> tuple[Lesson, ...]:
    rng = np.random.default_rng((group, num_subjects, split == "heldout", 31))
    size = BATCH_SIZES[num_subjects - 1] * BATCHES_PER_GROUP
    lessons = [sample_lesson(rng, num_subjects, split) for _ in range(size)]
    return tuple(sorted(lessons, key=lambda lesson: len(lesson.text)))


def lesson_batch(index: int, tokenizer: Tokenizer, split: str = "train") -> TextBatch:
    """Batch number `index` of a split, the same on every call.

    All captions of a batch have as many subjects and about one length (padding would be 40 % of the
    work); four batches in a row go through one to four subjects, with about as many tokens each.
    """
    num_subjects = 1 + index % MAX_SUBJECTS
    group, part = divmod(index // MAX_SUBJECTS, BATCHES_PER_GROUP)
    size = BATCH_SIZES[num_subjects - 1]
    lessons = _lessons_by_length(group, num_subjects, split)[part * size : (part + 1) * size]
    rng = np.random.default_rng((index, split == "heldout", 37))
    return collate([lessons[i] for i in rng.permutation(size)], tokenizer, rng)


def export(student: TextStudent, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes text.safetensors (bf16, the encoder without its readers) and text_tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in student.encoder.named_parameters()
    }
    save_file(tensors, folder / "text.safetensors")
    tokenizer.save(str(folder / "text_tokenizer.json"))


@torch.no_grad()
def draw_sheet(student: TextStudent, tokenizer: Tokenizer, path: Path, num: int = 12) -> None:
    """Held-out captions with what the readers made of each subject; wrong answers in red."""
    rng = np.random.default_rng(5)
    lessons = [sample_lesson(rng, 1 + row % MAX_SUBJECTS, "heldout") for row in range(num)]
    # The first fifth of a batch is masked: those are of no use here and left out again.
    spare = lessons[: num // (MASKED_SHARE - 1) + 1]
    batch = collate([*spare, *lessons], tokenizer, rng)
    first = len(spare)
    scores = student.answers(student.features(batch), batch)
    image = Image.new("RGB", (1100, num * 92), "white")
    pen = ImageDraw.Draw(image)
    for row, lesson in enumerate(lessons):
        pen.text((8, row * 92 + 4), lesson.text[:180], fill="black")
        for k in range(len(lesson.spans)):
            told = {n: int(scores[n][first + row, k].argmax()) for n in ("motion", "place")}
            right = all(told[name] == lesson.answers[name][k] for name in told)
            start, end = lesson.spans[k][0]
            place = "nowhere said" if told["place"] == UNSAID else PLACES[told["place"]]
            line = f"{lesson.text[start:end]}: {MOTIONS[told['motion']]}, {place}"
            pen.text((24, row * 92 + 20 + 16 * k), line, fill="darkgreen" if right else "red")
    image.save(path)


def run(minutes: float = 8.0, folder: Path = Path("runs/text")) -> Outcome:
    """Trains, measures on held-out identities, exports. Resumes when it was interrupted."""
    config = MINIATURE.text
    tokenizer = text_tokenizer(config)
    torch.manual_seed(0)
    student = TextStudent(config)
    checks = [lesson_batch(index, tokenizer, "heldout") for index in range(4 * BATCHES_PER_GROUP)]
    return loop.run(
        LoopConfig("text", minutes=minutes, lr=2e-3, muon_lr=0.01, sheet_every=250),
        student,
        lambda model, batch: cast(TextStudent, model).loss(batch),
        lambda index: lesson_batch(index, tokenizer),
        sheet_fn=lambda model, path: draw_sheet(cast(TextStudent, model), tokenizer, path),
        eval_fn=lambda model: accuracy(cast(TextStudent, model), checks),
        export_fn=lambda model, path: export(cast(TextStudent, model), tokenizer, path),
        folder=folder,
    )
