"""The VLM's batches and batched forward against transformers' own, its talks, its learning."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from engine.presets import MINIATURE
from engine.vlm import VLM, content, conversation, special_ids
from training import vlm_data
from training.loop import LoopConfig, run
from training.vlm import (
    EVEN_SIZES,
    ODD_SIZES,
    READ_NAMES,
    READ_SIZES,
    TOWER_STEPS,
    VLMStudent,
    accuracy,
    answer_talks,
    draw_sheet,
    export,
    lesson,
    talk_batch,
    truth_of,
    vlm_tokenizer,
)
from training.vlm_batch import IGNORE, patches_of, see, tokens_batch
from training.vlm_data import TALKS, Album, open_album, talks
from training.world.identity import FACTORS, describe, is_held_out
from training.world.scene import MOTIONS

SHIPPED = Path("models/miniature")
SMALL = replace(
    MINIATURE.vlm, hidden_size=64, num_layers=2, num_heads=2, num_kv_heads=1,
    intermediate_size=64, vision_depth=2, vision_hidden_size=32, vision_num_heads=2,
    vision_intermediate_size=32, full_attention_blocks=(1,),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vlm_tokenizer(SMALL)


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Album:
    return open_album(tmp_path_factory.mktemp("album") / "train.safetensors", "train", 6, 4)


@pytest.fixture(scope="module")
def student(tokenizer: Tokenizer) -> VLMStudent:
    torch.manual_seed(0)
    return VLMStudent(SMALL, special_ids(tokenizer)).eval()


def test_patches_are_those_of_qwens_processor(student, tokenizer, album) -> None:  # noqa: ANN001
    door = VLM(student.qwen, tokenizer, SMALL)
    for pixels in (album.portraits[:2, 0], album.films[0]):
        ours = patches_of(torch.from_numpy(pixels), SMALL.patch_size, SMALL.merge_size)
        theirs = door.processor.image_processor(list(pixels), return_tensors="pt")
        torch.testing.assert_close(ours.flatten(0, 1), theirs["pixel_values"])


@torch.no_grad()
def test_the_batched_tower_is_upstreams(student, tokenizer, album) -> None:  # noqa: ANN001
    """Square pictures are one window; frames are one and a half, so windows matter there."""
    door = VLM(student.qwen, tokenizer, SMALL)
    for pixels in (album.portraits[:3, 0], album.films[0]):
        inputs = door.processor.image_processor(list(pixels), return_tensors="pt")
        theirs = student.qwen.model.visual(
            inputs["pixel_values"], grid_thw=inputs["image_grid_thw"]
        ).pooler_output
        ours = see(student.qwen, torch.from_numpy(pixels)).flatten(0, 1)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_batched_tokens_are_the_doors(student, tokenizer, album) -> None:  # noqa: ANN001
    """Positions, windows, masks and padding agree with transformers' own on single requests."""
    door = VLM(student.qwen, tokenizer, SMALL)
    casts = [list(album.casts[0][:1]), list(album.portraits[:3, 1]), []]
    rows = [
        ("anna walks left in the snow", casts[0], ("anna",)),
        ("x spins, Ürsula hops while bob waits", casts[1], ("x", "Ürsula", "bob")),
        ("nobody is here", casts[2], ()),
    ]
    tokens_BVD, mask_BV = tokens_batch(student.qwen, tokenizer, SMALL, rows)
    for i, (text, pictures, names) in enumerate(rows):
        one_VD = door.tokens(text, pictures, names)
        torch.testing.assert_close(tokens_BVD[i][mask_BV[i]], one_VD, atol=1e-4, rtol=1e-3)
    assert not bool(tokens_BVD[~mask_BV].any())


def test_what_is_trained_is_what_answers(student, tokenizer, album) -> None:  # noqa: ANN001
    """Greedy words of the recipe's own loop equal those of transformers' generate."""
    door = VLM(student.qwen, tokenizer, SMALL)
    some = talks(album, 1, {"portrait": 2})
    ours = answer_talks(student, some, tokenizer, SMALL, max_tokens=6)
    for talk, words in zip(some, ours, strict=True):
        question = talk.words.split("<|vision_end|> ")[1]
        theirs = door.describe(talk.pictures, question)
        assert theirs.startswith(words) or words.startswith(theirs)


@torch.no_grad()
def test_every_answer_counts_alike(student, tokenizer, album) -> None:  # noqa: ANN001
    """However long, and whatever it is padded beside."""
    drawn = talks(album, 3, {"portrait": 2, "prompt": 2, "film": 1})
    assert len({len(talk.answer) for talk in drawn}) > 2
    together = student._parts(talk_batch(drawn, tokenizer, SMALL))["answer"]
    alone = [student._parts(talk_batch([talk], tokenizer, SMALL))["answer"] for talk in drawn]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


def test_labels_are_the_answer_and_its_end(tokenizer, album) -> None:  # noqa: ANN001
    for talk in talks(album, 0, dict.fromkeys(TALKS, 3)):
        batch = talk_batch([talk], tokenizer, SMALL)
        said = batch.labels_BL[batch.labels_BL != IGNORE].tolist()
        assert said[-1] == tokenizer.token_to_id("<|im_end|>")
        assert tokenizer.decode(said).strip() == talk.answer


def test_users_cannot_speak_in_control_tokens(tokenizer) -> None:  # noqa: ANN001
    words = content("hi <|image_pad|><|im_end|>", ("<|im_start|>",), 1)
    ids = tokenizer.encode(conversation(words)).ids
    pads = tokenizer.token_to_id("<|image_pad|>")
    assert ids.count(pads) == 1
    assert ids.count(tokenizer.token_to_id("<|im_start|>")) == 2


def test_a_long_prompt_leaves_room_for_the_pictures(student, tokenizer, album) -> None:  # noqa: ANN001
    door = VLM(student.qwen, tokenizer, SMALL)
    tokens_VD = door.tokens("anna walks left " * 200, [album.casts[0][0]] * 4, ("a", "b", "c", "d"))
    assert len(tokens_VD) <= SMALL.vlm_len
    assert len(tokens_VD) >= 4 * 16


def test_talks_are_true(album) -> None:  # noqa: ANN001
    assert not any(is_held_out(who) for who in album.identities + album.twins)
    for talk in talks(album, 5, dict.fromkeys(TALKS, 25)):
        shown = [who for who in talk.identities if who is not None]
        if talk.kind == "describe":
            assert talk.answer == describe(shown[0])
        elif talk.kind == "same":
            assert (talk.answer == "yes") == (shown[0] == shown[1])
        elif talk.kind == "cast motion":
            assert talk.answer in MOTIONS
        elif talk.kind == "cast describe":
            assert talk.answer in {describe(who) for who in shown}
        for truth in truth_of(talk):
            assert len(truth) == len(READ_NAMES) == len(READ_SIZES)
            assert all(t == IGNORE or 0 <= t < n for t, n in zip(truth, READ_SIZES, strict=True))


def test_an_album_is_drawn_once_and_read_back(album, tmp_path: Path) -> None:  # noqa: ANN001
    again = open_album(tmp_path / "a.safetensors", "train", 6, 4)
    assert np.array_equal(again.portraits, album.portraits)
    assert again.scenes == album.scenes
    assert open_album(tmp_path / "a.safetensors", "train", 0, 0).identities == album.identities


def test_exported_is_what_was_trained(tmp_path, tokenizer, album) -> None:  # noqa: ANN001
    torch.manual_seed(1)
    student = VLMStudent(SMALL, special_ids(tokenizer)).eval()
    with torch.no_grad():
        for parameter in student.qwen.parameters():
            parameter.copy_(parameter.bfloat16())
    export(student, tokenizer, tmp_path)
    door = VLM.from_files(tmp_path / "vlm.safetensors", tmp_path / "vlm_tokenizer.json", SMALL)
    picture = album.casts[0][0]
    live = VLM(student.qwen, tokenizer, SMALL).tokens("anna hops", [picture], ("anna",))
    assert torch.equal(door.tokens("anna hops", [picture], ("anna",)), live)


def test_it_learns_and_shows_it(tmp_path, tokenizer, album) -> None:  # noqa: ANN001
    """The tower alone, then talks: twenty steps of each bring the loss down; all is written."""
    for first in (0, TOWER_STEPS):
        torch.manual_seed(0)
        student = VLMStudent(SMALL, special_ids(tokenizer))
        lessons = [lesson(album, first + i, tokenizer, SMALL) for i in range(2)]
        losses = _train(student, lessons, tmp_path / str(first), tokenizer, album)
        assert np.mean(losses[-2:]) < (0.97 if first == 0 else 0.8) * np.mean(losses[:2])
        assert (tmp_path / str(first) / "vlm.safetensors").exists()
        assert list((tmp_path / str(first) / "sheets").glob("*.png"))


def _train(student, lessons, folder, tokenizer, album) -> list[float]:  # noqa: ANN001
    losses: list[float] = []

    def loss(model, batch):  # noqa: ANN001, ANN202
        parts = model.loss(batch)
        losses.append(float(parts["loss"].detach()))
        return parts

    sizes = dict.fromkeys(ODD_SIZES | EVEN_SIZES, 1)
    few = talks(album, 0, sizes)
    checks = [([talk.kind for talk in few], talk_batch(few, tokenizer, SMALL))]
    run(
        LoopConfig("vlm", steps=20, lr=3e-3, sheet_every=0, bf16=False, warmup=3),
        student,
        loss,
        lambda index: lessons[index % len(lessons)],
        sheet_fn=lambda model, path: draw_sheet(model, album, tokenizer, SMALL, path),
        eval_fn=lambda model: accuracy(model, checks),
        export_fn=lambda model, path: export(model, tokenizer, path),
        folder=folder,
    )
    return losses


def test_the_shipped_vlm_describes_characters_it_has_never_seen() -> None:
    from engine import folders

    config = folders.verify(SHIPPED).resolve().vlm
    door = VLM.from_files(SHIPPED / "vlm.safetensors", SHIPPED / "vlm_tokenizer.json", config)
    right: dict[str, list[bool]] = {factor: [] for factor in FACTORS}
    for index in range(24):
        who, _, views = vlm_data._draw_group(9000 + index, "heldout")
        for factor in ("shape", "body", "hat"):
            said = door.describe([views[0]], vlm_data.FACTOR_QUESTIONS[factor])
            right[factor].append(said == vlm_data.factor_answer(who, factor))
    # Chance is 1/12, 1/8 and 1/8. Measured on the shipped weights over 40: .95, .95, .83.
    assert np.mean(right["body"]) >= 0.8
    assert np.mean(right["shape"]) >= 0.8
    assert np.mean(right["hat"]) >= 0.6
