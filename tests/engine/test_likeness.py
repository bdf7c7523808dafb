"""The verdict in closed form, and the judge that the miniature brings on pictures drawn for it.

In the closed forms characters are axes of the embedding space, and stand where they are put.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine import likeness as module
from engine.errors import CheckpointError
from engine.folders import read_manifest
from engine.likeness import GATE, Likeness, SubjectLikeness, likeness, load_judge, observed
from engine.matching import Seen
from engine.spec import Reference

SHIPPED = Path(__file__).resolve().parents[2] / "models" / "miniature"
LEFT, MIDDLE, RIGHT = 0.2, 0.75, 1.3
AXES = np.eye(8)
ANNA, BOB, CARL = AXES[:3]
NAMES = {"anna": ANNA[None], "bob": BOB[None]}


def seen_of(*frames: dict[float, np.ndarray]) -> Seen:
    """Frames as {place: who stands there}; a character is 20 px wide and 40 px high."""
    most = max(1, *map(len, frames))
    boxes, unit = np.zeros((len(frames), most, 4)), np.zeros((len(frames), most, 8))
    real = np.zeros((len(frames), most), bool)
    for t, frame in enumerate(frames):
        for d, (place, who) in enumerate(frame.items()):
            boxes[t, d] = [64 * place - 10, 12, 64 * place + 10, 52]
            unit[t, d], real[t, d] = who, True
    return Seen(boxes, real, unit, 64)


def between(a: np.ndarray, b: np.ndarray, cosine: float) -> np.ndarray:
    """A unit vector that has this cosine to a, the rest towards b."""
    return cosine * a + np.sqrt(1 - cosine**2) * b


def test_all_there_and_themselves() -> None:
    told = likeness(seen_of(*[{LEFT: ANNA, RIGHT: BOB}] * 5), NAMES, (0.1, 0.9))
    assert told.subjects == (SubjectLikeness("anna", 1, 1), SubjectLikeness("bob", 1, 1))
    assert (told.overall, told.strangers) == (1, 0)
    assert told.reached == pytest.approx((1 - 0.1) / 0.8)


def test_similarity_is_the_mean_over_frames_and_a_frame_without_a_match_is_nothing() -> None:
    frames = [{LEFT: between(ANNA, CARL, c)} for c in (0.8, 0.6, 0.4)]
    told = likeness(seen_of(*frames, {}), {"anna": ANNA[None]}).subjects[0]
    assert told.similarity == pytest.approx((0.8 + 0.6 + 0.4) / 4)
    assert (told.lowest, told.missing) == (0, False)


def test_several_pictures_are_one_subject() -> None:
    pictures = np.stack([ANNA, CARL])
    told = likeness(seen_of({LEFT: ANNA}), {"anna": pictures})
    assert told.subjects[0].similarity == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize(("absent", "missing"), [(5, False), (6, True)])
def test_missing_is_more_than_half_of_the_frames(absent: int, missing: bool) -> None:
    both, alone = {LEFT: ANNA, RIGHT: BOB}, {LEFT: ANNA}
    told = likeness(seen_of(*[both] * (10 - absent), *[alone] * absent), NAMES)
    assert [one.missing for one in told.subjects] == [False, missing]
    assert told.strangers == 0


@pytest.mark.parametrize(("cosine", "missing"), [(GATE + 0.01, False), (GATE - 0.01, True)])
def test_who_is_not_like_enough_is_missing_and_a_stranger_stands_there(
    cosine: float, missing: bool
) -> None:
    frame = {LEFT: ANNA, RIGHT: between(BOB, CARL, cosine)}
    told = likeness(seen_of(*[frame] * 4), NAMES)
    assert [one.missing for one in told.subjects] == [False, missing]
    assert told.strangers == float(missing)


def test_whoever_was_not_asked_for_is_a_stranger() -> None:
    both = {LEFT: ANNA, RIGHT: BOB}
    told = likeness(seen_of(both | {MIDDLE: CARL}, both), NAMES)
    assert told.strangers == 0.5
    assert not any(one.missing or one.swapped for one in told.subjects)


def test_one_drawn_twice_is_told_with_its_name() -> None:
    twice = between(ANNA, BOB, 0.8)  # .8 anna and .6 bob
    told = likeness(seen_of(*[{LEFT: ANNA, RIGHT: twice}] * 4), NAMES)
    assert [one.looks_like for one in told.subjects] == [None, "anna"]
    assert [one.swapped for one in told.subjects] == [False, True]
    assert not any(one.missing or one.switched for one in told.subjects)


def test_who_is_like_nobody_or_hardly_there_resembles_nobody() -> None:
    vague = (0.2 * ANNA + 0.1 * BOB + CARL) / np.linalg.norm([0.2, 0.1, 1])
    told = likeness(seen_of(*[{LEFT: ANNA, RIGHT: vague}] * 4), NAMES)
    assert [one.looks_like for one in told.subjects] == [None, None]
    # A second anna who is there for half of the time is a slip; for more, she stands in for bob.
    for times, looks_like in ((4, None), (5, "anna")):
        frames = [{LEFT: ANNA, RIGHT: ANNA}] * times + [{LEFT: ANNA}] * (8 - times)
        told = likeness(seen_of(*frames), NAMES)
        assert told.subjects[1].looks_like == looks_like


def test_exchanged_all_along_cannot_be_seen() -> None:
    """Nobody knows without a script who should stand where: the docstring says so."""
    told = likeness(seen_of(*[{LEFT: BOB, RIGHT: ANNA}] * 4), NAMES)
    assert not any(one.swapped for one in told.subjects)


def test_trading_looks_from_a_frame_on_is_a_switch() -> None:
    before, after = {LEFT: ANNA, RIGHT: BOB}, {LEFT: BOB, RIGHT: ANNA}
    told = likeness(seen_of(*[before] * 4, *[after] * 4), NAMES)
    assert [one.switched for one in told.subjects] == [True, True]
    assert [one.looks_like for one in told.subjects] == [None, None]
    assert told.overall == 0.5


def test_looks_that_go_round_among_three_are_switches() -> None:
    before = {LEFT: ANNA, MIDDLE: BOB, RIGHT: CARL}
    after = {LEFT: CARL, MIDDLE: ANNA, RIGHT: BOB}
    told = likeness(seen_of(*[before] * 4, *[after] * 4), NAMES | {"carl": CARL[None]})
    assert [one.switched for one in told.subjects] == [True, True, True]


def test_walking_past_each_other_is_none() -> None:
    """In eleven frames each goes where the other one was, a tenth of the way at a time."""
    frames = []
    for share in np.linspace(0, 1, 11):
        way = share * (RIGHT - LEFT)
        frames.append({LEFT + way: ANNA, RIGHT - way - 1e-3: BOB})
    told = likeness(seen_of(*frames), NAMES)
    assert not any(one.switched for one in told.subjects)


@pytest.mark.parametrize(
    ("before", "after", "switched"),
    [
        # One leaps, to a place of its own or beside the other one.
        ({LEFT: ANNA, RIGHT: BOB}, {MIDDLE: ANNA, RIGHT: BOB}, [False, False]),
        ({LEFT: ANNA, RIGHT: BOB}, {RIGHT - 0.1: ANNA, RIGHT: BOB}, [False, False]),
        # She stands where he stood beside her, and has not moved.
        ({RIGHT - 0.1: ANNA, RIGHT: BOB}, {RIGHT - 0.1: ANNA, LEFT: BOB}, [False, False]),
        # Her looks went to his place, his to where nobody was.
        ({LEFT: ANNA, RIGHT: BOB}, {RIGHT: ANNA, MIDDLE: BOB}, [True, False]),
    ],
)
def test_who_took_whose_place(before: dict, after: dict, switched: list[bool]) -> None:
    told = likeness(seen_of(*[before] * 4, *[after] * 4), NAMES)
    assert [one.switched for one in told.subjects] == switched


def test_one_frame_that_is_misread_is_no_switch() -> None:
    """The track holds on to its place where likeness is in doubt for a moment."""
    bobbish, annaish = between(BOB, ANNA, 0.8), between(ANNA, BOB, 0.8)
    frames = [{LEFT: ANNA, RIGHT: BOB}] * 3 + [{LEFT: bobbish, RIGHT: annaish}]
    frames += [{LEFT: ANNA, RIGHT: BOB}] * 3
    assert not any(one.switched for one in likeness(seen_of(*frames), NAMES).subjects)


def test_copy_paste_needs_a_second_picture() -> None:
    first, second = ANNA, BOB
    alone = likeness(seen_of({LEFT: first}), {"anna": first[None]})
    assert alone.subjects[0].copy_paste is None
    pictures = {"anna": np.stack([first, second])}
    for shown, wanted in ((first, 1), (second, -1), (between(first, second, np.sqrt(0.5)), 0)):
        told = likeness(seen_of({LEFT: shown}), pictures).subjects[0].copy_paste
        assert told == pytest.approx(wanted, abs=1e-6)
    assert likeness(seen_of({}), pictures).subjects[0].copy_paste is None


def test_an_empty_stage_and_nobody_asked_for() -> None:
    told = likeness(seen_of({}, {}), NAMES)
    assert [(one.similarity, one.missing, one.swapped) for one in told.subjects] == [
        (0, True, False)
    ] * 2
    assert told.overall == 0
    free = likeness(seen_of({LEFT: ANNA}, {}), {})
    assert (free.overall, free.strangers, free.reached, free.subjects) == (1, 0.5, None, ())


def test_overall_is_the_worst_and_flaws_halve_it() -> None:
    one = SubjectLikeness("anna", 0.8, 0.5)
    assert Likeness((one, replace(one, similarity=0.6)), 0).overall == 0.6
    for flaw in ({"missing": True}, {"switched": True}, {"looks_like": "bob"}):
        assert Likeness((one, replace(one, **flaw)), 0).overall == 0.4
    assert Likeness((replace(one, similarity=-0.2),), 0).overall == 0


def test_the_answer_is_plain_values() -> None:
    one = SubjectLikeness("anna", 0.123456, 0.1, copy_paste=0.5)
    assert Likeness((one,), 1 / 3, 0.7).to_json() == {
        "overall": 0.1235,
        "reached": 0.7,
        "strangers": 0.3333,
        "subjects": [
            {
                "name": "anna",
                "similarity": 0.1235,
                "lowest": 0.1,
                "missing": False,
                "swapped": False,
                "looks_like": None,
                "switched": False,
                "copy_paste": 0.5,
            }
        ],
    }


@pytest.mark.parametrize(
    "evaluation",
    [
        {},
        {"subjects": {}},
        {"subjects": {"2": {"lower": 0.1}}},
        {"subjects": {"2": {"lower": 0.5, "upper": 0.5}}},
        {"subjects": {"2": None}},
        {"subjects": []},
    ],
)
def test_without_an_evaluation_there_is_no_scale(evaluation: dict) -> None:
    assert module.scale_of(evaluation, 2) is None
    assert likeness(seen_of({LEFT: ANNA}), NAMES).reached is None


def test_frames_are_looked_at_as_the_instruments_learnt_them() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
    assert np.array_equal(observed(frames).numpy(), frames[::2])
    assert observed(frames[:1]).shape == (1, 64, 96, 3)
    assert observed(frames[:, :32, :48]).shape == (9, 64, 96, 3)
    assert observed(np.full((33, 128, 72, 3), 9, np.uint8)).unique().tolist() == [9]
    assert observed(np.zeros((33, 128, 72, 3), np.uint8)).shape == (9, 64, 32, 3)


def picture_of(name: str, pixels: np.ndarray) -> Reference:
    return Reference(name, pixels.shape[1], pixels.shape[0], pixels.tobytes())


@pytest.mark.skipif(not (SHIPPED / "detector.safetensors").is_file(), reason="no instruments")
def test_the_miniature_s_judge_sees_what_evaluation_sees() -> None:
    """Same boxes, same embeddings, bit for bit; and true clips reach what the manifest says."""
    from training import measure
    from training.world.clip import sample_clip

    judge = load_judge(SHIPPED)
    assert isinstance(judge, module.CropJudge)
    tools = measure.Instruments.load(SHIPPED)
    upper = read_manifest(SHIPPED).evaluation["subjects"]["2"]["upper"]
    similarity = []
    for seed in range(4):
        clip = sample_clip(seed, split="heldout", num_subjects=2)
        own, true = judge.see(clip.frames), measure.observe(tools, clip.frames)
        for name in ("boxes_TDK", "real_TD", "embedding_TDE", "height"):
            assert np.array_equal(getattr(own, name), getattr(true, name)), name
        pictures = [picture_of(f"s{k}", pixels) for k, pixels in enumerate(clip.references)]
        told = judge.score(clip.frames, pictures)
        assert not any(one.missing or one.switched for one in told.subjects)
        similarity += [one.similarity for one in told.subjects]
        stranger = sample_clip(900 + seed, split="heldout", num_subjects=1).references[0]
        with_stranger = judge.score(clip.frames, [*pictures, picture_of("zoe", stranger)])
        assert [one.missing for one in with_stranger.subjects] == [False, False, True]
        assert judge.score(clip.frames, pictures) == told
    assert np.mean(similarity) == pytest.approx(upper, abs=0.05)


@pytest.mark.skipif(not (SHIPPED / "detector.safetensors").is_file(), reason="no instruments")
def test_an_altered_instrument_is_refused(tmp_path: Path) -> None:
    for name in ("manifest.json", *module.FILES):
        shutil.copy(SHIPPED / name, tmp_path / name)
    assert load_judge(tmp_path) is not None
    path = tmp_path / module.FILES[1]
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(CheckpointError, match=r"identity\.safetensors is not the file"):
        load_judge(tmp_path)


def test_a_folder_without_instruments_has_no_judge(random_model: Path) -> None:
    assert load_judge(random_model) is None
