"""The text encoder's lessons, its learning, and that what is exported is what was trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import CheckpointError
from engine.presets import MINIATURE
from engine.text import TextEncoder
from training.loop import LoopConfig, run
from training.text import (
    IGNORE,
    MASKED_SHARE,
    UNSAID,
    TextStudent,
    accuracy,
    collate,
    draw_sheet,
    export,
    lesson_batch,
    places_said,
    rename,
    sample_lesson,
    text_tokenizer,
)
from training.world.caption import Caption, caption
from training.world.identity import FACTORS
from training.world.scene import PLACES, sample_scene

SHIPPED = Path("models/miniature")
SMALL = replace(MINIATURE.text, num_layers=1, d_model=32, d_kv=8, d_ff=32)


@pytest.fixture(scope="module")
def tokenizer():  # noqa: ANN201
    return text_tokenizer(SMALL)


@pytest.fixture(scope="module")
def student() -> TextStudent:
    torch.manual_seed(0)
    return TextStudent(SMALL).eval()


def test_places_belong_to_the_mention_before_them() -> None:
    text = "in a meadow, anna on the far left walks to the right while bob in the center hops"
    anna, bob = text.index("anna"), text.index("bob")
    spans = (((anna, anna + 4),), ((bob, bob + 3),))
    said = places_said(Caption(text, text, ("anna", "bob"), spans))
    assert {k: PLACES[place] for k, place in said.items()} == {0: "far left", 1: "middle"}


def test_renaming_moves_every_span() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        words = caption(sample_scene(rng, 3), rng, "names")
        other = rename(words, ["Ürsula", "x", "李小"])
        for spans, old, name in zip(other.spans, words.spans, other.names, strict=True):
            assert len(spans) == len(old)
            assert {other.text[start:end] for start, end in spans} == {name}


def test_answers_are_about_what_is_said() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        lesson = sample_lesson(rng, 3)
        for k, spans in enumerate(lesson.spans):
            first = min(start for start, _ in spans)
            earlier = sum(min(s for s, _ in other) < first for other in lesson.spans)
            assert lesson.answers["turn"][k] == earlier
            place = lesson.answers["place"][k]
            assert place == UNSAID or PLACES[place].split()[-1][:3] in lesson.text or place == 2
            shape = lesson.answers["shape"][k]
            assert shape == IGNORE or FACTORS["shape"][shape] in lesson.text


def test_a_batch_hides_tokens_only_where_nothing_is_asked(tokenizer) -> None:  # noqa: ANN001
    batch = lesson_batch(2, tokenizer)
    masked = len(batch.ids_BL) // MASKED_SHARE
    assert bool((batch.labels_BL[:masked] != IGNORE).any())
    assert bool((batch.labels_BL[masked:] == IGNORE).all())
    assert all(bool((answers[:masked] == IGNORE).all()) for answers in batch.answers.values())
    assert bool((batch.answers["motion"][masked:] != IGNORE).any())
    again = lesson_batch(2, tokenizer)
    assert torch.equal(batch.ids_BL, again.ids_BL)


def test_tags_do_not_depend_on_the_batch_around_them(student, tokenizer) -> None:  # noqa: ANN001
    encoder = TextEncoder(student.encoder, tokenizer, SMALL)
    texts = ["anna walks left", "the green star hops while bob, on the far left, spins around"]
    spans = [[((0, 4),)], [((0, 14),), ((26, 29),)]]
    features_BTD, tags = encoder.encode_with_tags(texts, spans)
    assert features_BTD.shape == (2, SMALL.text_len, SMALL.d_model)
    for i in range(2):
        torch.testing.assert_close(tags[i], encoder.span_features(texts[i], spans[i]))
        torch.testing.assert_close(features_BTD[i], encoder.encode([texts[i]])[0])
    num_tokens = len(tokenizer.encode(texts[0]).ids)
    assert not bool(features_BTD[0, num_tokens:].any())
    assert bool(features_BTD[0, :num_tokens].any(dim=-1).all())


def test_a_span_is_pooled_over_its_own_tokens(student, tokenizer) -> None:  # noqa: ANN001
    encoder = TextEncoder(student.encoder, tokenizer, SMALL)
    text = "Ürsula walks left, x7 hops"
    features_TD = encoder.encode([text])[0]
    tokens = tokenizer.encode(text)
    own = [i for i, (start, end) in enumerate(tokens.offsets) if start < 6 and end > 0]
    expected = features_TD[own].mean(0)
    torch.testing.assert_close(encoder.span_features(text, [((0, 6),)])[0], expected)
    assert not bool(encoder.span_features(text, [()]).any())


def test_a_text_that_is_too_long_is_cut(student, tokenizer) -> None:  # noqa: ANN001
    encoder = TextEncoder(student.encoder, tokenizer, SMALL)
    text = "anna walks left " * 40
    assert encoder.encode([text]).shape[1] == SMALL.text_len
    late = len(text) - 16
    assert not bool(encoder.span_features(text, [((late, late + 4),)]).any())


def test_exported_is_what_was_trained(tmp_path: Path, tokenizer) -> None:  # noqa: ANN001
    torch.manual_seed(1)
    student = TextStudent(SMALL).eval()
    with torch.no_grad():  # to what bf16 can hold, which is what the file holds
        for parameter in student.encoder.parameters():
            parameter.copy_(parameter.bfloat16())
    export(student, tokenizer, tmp_path)
    files = tmp_path / "text.safetensors", tmp_path / "text_tokenizer.json"
    encoder = TextEncoder.from_files(*files, SMALL)
    batch = collate([sample_lesson(np.random.default_rng(1), 2)], tokenizer,
                    np.random.default_rng(0))  # fmt: skip
    words = tokenizer.decode(batch.ids_BL[0].tolist())
    live = TextEncoder(student.encoder, tokenizer, SMALL).encode([words])
    assert torch.equal(encoder.encode([words]), live)


def test_weights_of_another_size_are_refused(tmp_path: Path, student, tokenizer) -> None:  # noqa: ANN001
    export(student, tokenizer, tmp_path)
    files = tmp_path / "text.safetensors", tmp_path / "text_tokenizer.json"
    with pytest.raises(CheckpointError, match="lacks"):
        TextEncoder.from_files(*files, replace(SMALL, num_layers=2))
    with pytest.raises(CheckpointError, match="another shape"):
        TextEncoder.from_files(*files, replace(SMALL, d_ff=64))


def test_it_learns_and_shows_it(tmp_path: Path, tokenizer) -> None:  # noqa: ANN001
    """Thirty steps bring the loss down by a quarter; the sheet is drawn, the files are written."""
    torch.manual_seed(0)
    student = TextStudent(SMALL)
    losses: list[float] = []

    def loss(model: TextStudent, batch) -> dict[str, torch.Tensor]:  # noqa: ANN001
        parts = model.loss(batch)
        losses.append(float(parts["loss"].detach()))
        return parts

    batches = [lesson_batch(4 * index, tokenizer) for index in range(6)]
    run(
        LoopConfig("text", steps=30, lr=5e-3, sheet_every=0, bf16=False),
        student,
        loss,
        lambda index: batches[index % 6],
        sheet_fn=lambda model, path: draw_sheet(model, tokenizer, path, num=4),
        eval_fn=lambda model: accuracy(model, batches[:1]),
        export_fn=lambda model, folder: export(model, tokenizer, folder),
        folder=tmp_path,
    )
    assert np.mean(losses[-6:]) < 0.75 * np.mean(losses[:6])  # the same six batches
    assert (tmp_path / "text.safetensors").exists()
    assert list((tmp_path / "sheets").glob("*.png"))


def test_the_shipped_encoder_puts_roles_into_tags() -> None:
    """Tags of two subjects with the same name differ by role more than by name: the nearest of a
    set of role prototypes, made from other names, is the right one."""
    from engine import folders

    preset = folders.verify(SHIPPED).resolve()
    encoder = TextEncoder.from_files(
        SHIPPED / "text.safetensors", SHIPPED / "text_tokenizer.json", preset.text
    )
    acts = ("walks left", "walks right", "bounces", "spins", "stands still", "comes closer")
    names = ("anna", "bob", "zq4", "Ürsula", "kim")

    def tags(name: str) -> torch.Tensor:
        texts = [f"{name} {act} while tom waits in a meadow" for act in acts]
        spans = [[((0, len(name)),)]] * len(acts)
        return torch.cat(encoder.encode_with_tags(texts, spans)[1])

    prototypes = torch.stack([tags(name) for name in names]).mean(0)
    unseen = tags("wolfram")
    distance = torch.cdist(unseen - unseen.mean(0), prototypes - prototypes.mean(0))
    assert distance.argmin(1).tolist() == list(range(len(acts)))
