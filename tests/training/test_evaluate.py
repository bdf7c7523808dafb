"""The report's arithmetic in closed form, its cases, and the engine behind it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.detector import Detector
from engine.identity import IdentityEncoder
from training import evaluate
from training.evaluate import Case, draw_sheet, from_engine, sample_clips, summarise, tells_places
from training.measure import Instruments, Score
from training.world.identity import FACTOR_NAMES, is_held_out
from training.world.oracle import Oracle


def _score(similarity: float, num: int = 2, swapped: bool = False) -> Score:
    return Score(
        similarity_S=np.full(num, similarity),
        missing_S=np.zeros(num, bool),
        swapped_S=np.full(num, swapped),
        motion_S=np.ones(num, bool),
        factors_SF=np.ones((num, len(FACTOR_NAMES))),
        copy_S=np.full(num, -1.0),
        background=True,
        light=False,
    )


def _case(clip: object, upper: float, lower: float) -> Case:
    return Case(
        clip,
        np.eye(2, 4),
        np.eye(2, 4),
        _score(upper),
        np.full(2, lower),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def clips() -> list:
    return sample_clips(4, 2)


@pytest.mark.parametrize(("similarity", "reached"), [(0.8, 1.0), (0.1, 0.0), (0.45, 0.5)])
def test_reached_runs_from_strangers_to_truth(
    clips: list, similarity: float, reached: float
) -> None:
    cases = [_case(clip, 0.8, 0.1) for clip in clips]
    table = summarise([[_score(similarity) for _ in cases]] * 2, cases)
    assert table["reached"] == pytest.approx(reached)
    assert (table["upper"], table["lower"]) == pytest.approx((0.8, 0.1))
    assert table["similarity_se"] == table["similarity_sd"] == pytest.approx(0)


def test_spread_over_cases_and_over_seeds_are_told_apart(clips: list) -> None:
    cases = [_case(clip, 1.0, 0.0) for clip in clips]
    by_case = summarise([[_score(s) for s in (0.2, 0.4, 0.6, 0.8)]] * 3, cases)
    assert by_case["similarity_sd"] == pytest.approx(0)
    assert by_case["similarity_se"] == pytest.approx(np.std([0.2, 0.4, 0.6, 0.8], ddof=1) / 2)
    by_seed = summarise([[_score(s) for _ in cases] for s in (0.4, 0.6)], cases)
    assert by_seed["similarity_se"] == pytest.approx(0)
    assert by_seed["similarity_sd"] == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_worst_is_the_least_similar_of_a_clip(clips: list) -> None:
    cases = [_case(clip, 1.0, 0.0) for clip in clips]
    score = replace(_score(0.0), similarity_S=np.array([0.9, 0.3]))
    table = summarise([[score] * 4], cases)
    assert (table["similarity"], table["worst"]) == pytest.approx((0.6, 0.3))
    assert table["worst_upper"] == pytest.approx(1.0)


def test_swaps_are_counted_per_subject(clips: list) -> None:
    cases = [_case(clip, 1.0, 0.0) for clip in clips]
    row = [_score(0.5, swapped=i == 0) for i in range(4)]
    table = summarise([row], cases)
    assert table["swaps"] == pytest.approx(0.25)
    assert table["swaps_truth"] == 0
    assert table["background"] == 1 and table["light"] == 0


def test_cases_are_held_out_and_say_where_everybody_is(clips: list) -> None:
    for clip in clips:
        assert all(is_held_out(role.identity) for role in clip.scene.cast)
        assert tells_places(clip.scene, clip.caption)
        assert all(f"@{name}" in clip.caption.prompt for name in clip.caption.names)
    again = sample_clips(4, 2)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(clips, again, strict=True))


def test_a_caption_without_places_is_no_case(clips: list) -> None:
    words = replace(clips[0].caption, text="anna waits and bob hops at the beach")
    assert not tells_places(clips[0].scene, words)


def test_one_clip_has_no_stranger(clips: list) -> None:
    tools = Instruments(IdentityEncoder().eval(), Detector().eval(), Oracle().eval())
    with pytest.raises(ValueError, match="at least two"):
        evaluate.prepare(clips[:1], tools)


def test_untrained_instruments_go_through_every_step(clips: list, tmp_path: Path) -> None:
    tools = Instruments(IdentityEncoder().eval(), Detector().eval(), Oracle().eval())
    cases = evaluate.prepare(clips, tools)
    kept = []
    table = evaluate.evaluate(
        evaluate.truth, tools, cases, 2, batch=3, on_frames=lambda c, f: kept.append((c, f))
    )
    assert len(kept) == 2, "sheets are of the first seed"
    assert table["clips"] == 4
    assert table["similarity"] == pytest.approx(table["upper"])
    draw_sheet(*kept[0], str(tmp_path / "sheet.png"))
    assert Image.open(tmp_path / "sheet.png").size == (4 * 128 + 4 * 96, 3 * 128)


def test_controls_show_what_they_say(clips: list) -> None:
    seeds = [0] * len(clips)
    assert np.array_equal(evaluate.truth(clips, seeds)[0], clips[0].frames)
    assert len(np.unique(evaluate.blank(clips, seeds))) == 1
    for control in ("exchange", "strangers"):
        frames = evaluate.CONTROLS[control](clips, seeds)
        assert frames.shape == (4, 17, 64, 96, 3)
        assert not np.array_equal(frames[0], clips[0].frames)


def test_an_engine_generates_a_batch_from_captions_and_references(
    clips: list, random_model: Path
) -> None:
    from engine.pipeline import Engine

    generate = from_engine(Engine.load(random_model), steps=1)
    small = [replace(clip, frames=clip.frames[:5, ::2, ::2]) for clip in clips[:2]]
    frames = generate(small, [1, 2])
    assert frames.shape == (2, 5, 32, 48, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, generate(small, [1, 2]))
    assert not np.array_equal(frames[0], generate(small[:1], [3])[0])
