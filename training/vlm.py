"""Recipe `miniature_vlm`: Qwen2.5-VL from scratch, trained to describe the world and judge it.

The loss is the usual one, next token of the answer. Beside it, linear readers look at each
picture's own tokens, right behind the vision tower and at the language model's last layer, and
must tell the pictured character's factors (and its role, where the prompt gives one): it teaches
the tower to see long before the answers do, and it makes sure that the last hidden states, which
condition the DiT, hold who is pictured and what they are to do. The readers are dropped at export.
The first steps are for the tower alone.

Legend: B conversations, L tokens, N pictures of one size, K tokens of a picture, D hidden size,
R answers to be read from a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.presets import MINIATURE, VLMConfig
from engine.vlm import build_vlm, conversation, special_ids
from training import loop
from training.loop import LoopConfig, Outcome
from training.text import SUBJECT_READERS
from training.tokenizers import build_vlm_tokenizer, grammar_words
from training.vlm_batch import IGNORE, TalkBatch, collate, read, see
from training.vlm_data import EXTRA_WORDS, VIEWS, Album, Talk, open_album, talks
from training.world.identity import FACTOR_NAMES, FACTORS, Identity
from training.world.scene import BACKGROUNDS, LIGHTS

FACTOR_SIZES = tuple(len(values) for values in FACTORS.values())
ROLE_SIZES = (SUBJECT_READERS["motion"], SUBJECT_READERS["place"])
SCENE_SIZES = (len(BACKGROUNDS), len(LIGHTS))
READ_SIZES = FACTOR_SIZES + ROLE_SIZES + SCENE_SIZES


READ_NAMES = (*FACTORS, "motion", "place", "background", "light")
TOWER_STEPS = 800
TOWER_BATCH = 96
ODD_SIZES = {"portrait": 24, "pair": 12, "prompt": 40, "cast": 14}
EVEN_SIZES = {"portrait": 24, "pair": 12, "prompt": 40, "film": 10}
SHORT = ("portrait", "pair", "prompt")


def truth_of(talk: Talk) -> list[list[int]]:
    """What can be read from each picture of a conversation, in the order of READ_SIZES."""
    truths = []
    for i in range(len(talk.pictures)):
        who = talk.identities[i] if talk.identities else None
        factors = _visible(who) if who is not None else [IGNORE] * len(FACTOR_SIZES)
        role = talk.roles[i] if talk.roles else (IGNORE,) * len(ROLE_SIZES)
        is_frame = who is None and talk.scene is not None
        scene = talk.scene if is_frame and talk.scene else (IGNORE,) * len(SCENE_SIZES)
        truths.append([*factors, *role, *scene])
    return truths


def _visible(identity: Identity) -> list[int]:
    """Factor values; IGNORE for the colour of what is not worn."""
    values = [getattr(identity, name) for name in FACTOR_NAMES]
    for item in ("hat", "accessory"):
        if not getattr(identity, item):
            values[FACTOR_NAMES.index(f"{item}_color")] = IGNORE
    return values


@dataclass(frozen=True)
class Lesson:
    """One batch: conversations in padded groups of like length, or bare pictures (uint8
    [N, H, W, 3]) with their truth (int64 [N, R]) for the tower alone."""

    talks: tuple[TalkBatch, ...]
    pixels_NHWC: Tensor | None = None
    truth_NR: Tensor | None = None


def talk_batch(talks: Sequence[Talk], tokenizer: Tokenizer, config: VLMConfig) -> TalkBatch:
    """Conversations with their answers, for training."""
    return collate(
        [conversation(talk.words, talk.answer) for talk in talks],
        [talk.pictures for talk in talks],
        tokenizer,
        config,
        [truth_of(talk) for talk in talks],
    )


class VLMStudent(nn.Module):
    """The model with its readers."""

    def __init__(self, config: VLMConfig, token_ids: dict[str, int]) -> None:
        super().__init__()
        self.qwen = build_vlm(config, token_ids)
        self.head_seen = nn.Linear(config.hidden_size, sum(READ_SIZES))
        self.head_told = nn.Linear(config.hidden_size, sum(READ_SIZES))

    def loss(self, lesson: Lesson) -> dict[str, Tensor]:
        """Means over the groups: the answers' cross-entropy and the readers'."""
        if lesson.pixels_NHWC is not None and lesson.truth_NR is not None:
            seen_NKD = see(self.qwen, lesson.pixels_NHWC)
            seen = _read_loss(self.head_seen(seen_NKD.mean(1)), lesson.truth_NR)
            return {"loss": seen / len(FACTOR_SIZES), "seen": seen}
        parts = [self._parts(batch) for batch in lesson.talks]
        mean = {name: torch.stack([p[name] for p in parts]).mean() for name in parts[0]}
        total = mean["answer"] + 0.1 * mean["seen"] + 0.1 * mean["told"]
        return {"loss": total, **mean}

    def _parts(self, batch: TalkBatch) -> dict[str, Tensor]:
        x_BLD, seen = read(self.qwen, batch)
        asked_BL = batch.labels_BL[:, 1:] != IGNORE
        logits = self.qwen.lm_head(x_BLD[:, :-1][asked_BL]).float()
        surprise = F.cross_entropy(logits, batch.labels_BL[:, 1:][asked_BL], reduction="none")
        # Every answer counts alike: by tokens, descriptions would outvote one-word answers.
        share_BL = asked_BL / asked_BL.sum(1, keepdim=True).clamp_min(1)
        answer = (surprise * share_BL[asked_BL]).sum() / asked_BL.any(1).sum()
        flat_XD = x_BLD.flatten(0, 1)
        losses = {"answer": answer, "seen": x_BLD.new_zeros(()), "told": x_BLD.new_zeros(())}
        for group, seen_NKD in zip(batch.pictures, seen, strict=True):
            told_ND = flat_XD[group.slots_NK].mean(1)
            losses["told"] = losses["told"] + _read_loss(self.head_told(told_ND), group.truth_NR)
            # Roles stand in the words, which the tower has not read.
            truth_NR = group.truth_NR.clone()
            truth_NR[:, len(FACTOR_SIZES) : len(FACTOR_SIZES + ROLE_SIZES)] = IGNORE
            losses["seen"] = losses["seen"] + _read_loss(self.head_seen(seen_NKD.mean(1)), truth_NR)
        return losses


def _read_loss(scores_NX: Tensor, truth_NR: Tensor) -> Tensor:
    """Sum over the readers of each one's mean cross-entropy, over the pictures that have it."""
    total = scores_NX.new_zeros((), dtype=torch.float32)
    for scores_NV, truth_N in zip(scores_NX.split(READ_SIZES, -1), truth_NR.T, strict=True):
        if bool((truth_N != IGNORE).any()):
            total = total + F.cross_entropy(scores_NV.float(), truth_N, ignore_index=IGNORE)
    return total


def vlm_tokenizer(config: VLMConfig) -> Tokenizer:
    """The tokenizer of this recipe; the same on every machine."""
    return build_vlm_tokenizer(config.vocab_size, [*grammar_words(), *EXTRA_WORDS])


def export(student: VLMStudent, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes vlm.safetensors (bf16, without readers, tied weights once) and vlm_tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in student.qwen.named_parameters()
    }
    save_file(tensors, folder / "vlm.safetensors")
    tokenizer.save(str(folder / "vlm_tokenizer.json"))


def lesson(album: Album, index: int, tokenizer: Tokenizer, config: VLMConfig) -> Lesson:
    """Batch number `index`, the same on every call: pictures first, conversations later."""
    if index < TOWER_STEPS:
        return _tower_lesson(album, index)
    sizes = ODD_SIZES if index % 2 else EVEN_SIZES
    drawn = talks(album, index, sizes)
    # Films and casts are several times longer than the others: two groups, little padding.
    num_short = sum(sizes[kind] for kind in SHORT)
    groups = (drawn[:num_short], drawn[num_short:])
    return Lesson(tuple(talk_batch(group, tokenizer, config) for group in groups))


def _tower_lesson(album: Album, index: int) -> Lesson:
    rng = np.random.default_rng((index, 59))
    picked = [
        album.person(int(group), int(rng.integers(VIEWS)))
        for group in rng.integers(len(album.identities), size=TOWER_BATCH)
    ]
    nothing = [IGNORE] * len(ROLE_SIZES + SCENE_SIZES)
    truth_NR = torch.tensor([[*_visible(who), *nothing] for who, _ in picked])
    return Lesson((), torch.from_numpy(np.stack([pixels for _, pixels in picked])), truth_NR)


@torch.no_grad()
def answer_talks(
    student: VLMStudent, talks: Sequence[Talk], tokenizer: Tokenizer, config: VLMConfig,
    max_tokens: int = 64,
) -> list[str]:
    """Greedy answers. The whole conversation is read again for each token: short, and simple."""
    end = special_ids(tokenizer)["<|im_end|>"]
    said: list[list[int]] = [[] for _ in talks]
    waiting = list(range(len(talks)))
    while waiting and len(said[waiting[0]]) < max_tokens:
        turns = [talks[i].turn() for i in waiting]
        batch = collate(turns, [talks[i].pictures for i in waiting], tokenizer, config,
                        told=[said[i] for i in waiting])
        x_BLD, _ = read(student.qwen, batch)
        last_B = batch.mask_BL.sum(1) - 1
        tokens = student.qwen.lm_head(x_BLD[torch.arange(len(waiting)), last_B]).argmax(-1)
        for i, token in zip(list(waiting), tokens.tolist(), strict=True):
            if token == end:
                waiting.remove(i)
            else:
                said[i].append(token)
    return [tokenizer.decode(ids).strip() for ids in said]


@torch.no_grad()
def accuracy(
    student: VLMStudent, batches: Sequence[tuple[list[str], TalkBatch]]
) -> dict[str, float]:
    """Per kind of conversation, how often the whole answer is right (each token is the most likely
    one after the right ones, which is when greedy decoding gives it), and what the readers read."""
    hits: dict[str, list[float]] = {}
    for kinds, batch in batches:
        x_BLD, _ = read(student.qwen, batch)
        guess_BL = student.qwen.lm_head(x_BLD[:, :-1]).argmax(-1)
        labels_BL = batch.labels_BL[:, 1:]
        right_B = ((guess_BL == labels_BL) | (labels_BL == IGNORE)).all(1)
        for kind, right in zip(kinds, right_B.tolist(), strict=True):
            hits.setdefault(kind, []).append(float(right))
        for group in batch.pictures:
            scores_NX = student.head_told(x_BLD.flatten(0, 1)[group.slots_NK].mean(1))
            for name, scores_NV, truth_N in zip(
                READ_NAMES, scores_NX.split(READ_SIZES, -1), group.truth_NR.T, strict=True
            ):
                asked = truth_N != IGNORE
                right_N = scores_NV.argmax(-1)[asked] == truth_N[asked]
                hits.setdefault(f"read {name}", []).extend(right_N.float().tolist())
    return {name: sum(values) / len(values) for name, values in hits.items() if values}


def draw_sheet(
    student: VLMStudent, album: Album, tokenizer: Tokenizer, config: VLMConfig, path: Path
) -> None:
    """Held-out pictures with question, answer and truth; wrong answers in red."""
    shown = talks(album, 7, {"portrait": 4, "pair": 2, "cast": 2, "film": 2})
    answers = answer_talks(student, shown, tokenizer, config, max_tokens=28)
    image = Image.new("RGB", (1150, 84 * len(shown)), "white")
    pen = ImageDraw.Draw(image)
    for row, (talk, answer) in enumerate(zip(shown, answers, strict=True)):
        left = 4
        for picture in talk.pictures:
            image.paste(Image.fromarray(picture), (left, 84 * row + 6))
            left += picture.shape[1] + 3
        words = talk.words.replace("<|vision_start|><|image_pad|><|vision_end|>", "[]")
        pen.text((left + 6, 84 * row + 6), words[:150], fill="gray")
        color = "darkgreen" if answer == talk.answer else "red"
        pen.text((left + 6, 84 * row + 24), answer[:150], fill=color)
        pen.text((left + 6, 84 * row + 42), talk.answer, fill="black")
    image.save(path)


def run(
    minutes: float = 30.0,
    folder: Path = Path("runs/vlm"),
    num_groups: int = 6000,
    num_films: int = 1500,
) -> Outcome:
    """Draws the pictures, trains, measures on held-out identities, exports; resumes."""
    config = MINIATURE.vlm
    tokenizer = vlm_tokenizer(config)
    album = open_album(folder / "album_train.safetensors", "train", num_groups, num_films)
    unseen = open_album(folder / "album_heldout.safetensors", "heldout", 400, 160)
    torch.manual_seed(0)
    student = VLMStudent(config, special_ids(tokenizer))
    asked = [
        talks(unseen, index, {kind: 24}) for index in range(2) for kind in ODD_SIZES | EVEN_SIZES
    ]
    checks = [([t.kind for t in part], talk_batch(part, tokenizer, config)) for part in asked]
    return loop.run(
        LoopConfig("vlm", minutes=minutes, lr=2e-3, muon_lr=0.01, sheet_every=800),
        student,
        lambda model, batch: cast(VLMStudent, model).loss(batch),
        lambda index: lesson(album, index, tokenizer, config),
        sheet_fn=lambda model, path: draw_sheet(
            cast(VLMStudent, model), unseen, tokenizer, config, path
        ),
        eval_fn=lambda model: accuracy(cast(VLMStudent, model), checks),
        export_fn=lambda model, path: export(cast(VLMStudent, model), tokenizer, path),
        folder=folder,
    )
