"""Closed forms: what perfect readers say of truth, exchanged roles, strangers and empty stages.

The readers are replaced by the script itself: boxes where the characters are, and for each
character an embedding of its own, so that every figure has one right answer.
"""

from dataclasses import astuple, replace

import numpy as np
import pytest
import torch

from training import measure
from training.gallery import full_boxes, many_values
from training.measure import EVERY, Observation
from training.world import oracle
from training.world.caption import caption
from training.world.clip import Clip
from training.world.identity import Identity, near_twin
from training.world.render import render_clip
from training.world.scene import POSE, Scene, sample_scene


def clip_of(scene: Scene) -> Clip:
    """A clip without pictures: perfect readers do not look."""
    num = len(scene.cast)
    return Clip(
        frames=np.zeros((17, 64, 96, 3), np.uint8),
        references=np.zeros((num, 64, 64, 3), np.uint8),
        caption=caption(scene, np.random.default_rng(0), "names"),
        scene=scene,
        boxes=scene.boxes(17, 64, 96),
        visibility=scene.visibility(17, 64, 96),
    )


def embedding(identity: Identity) -> np.ndarray:
    """A unit vector of its own for everybody, nearly orthogonal to all others."""
    vector = np.random.default_rng(astuple(identity)).normal(size=128)
    return vector / np.linalg.norm(vector)


def references(scene: Scene) -> np.ndarray:
    return np.stack([embedding(role.identity) for role in scene.cast])


def perfect(scene: Scene) -> Observation:
    """What flawless instruments would see of the scene."""
    num = len(scene.cast)
    boxes = full_boxes(scene, 17)[:, ::EVERY].swapaxes(0, 1).astype(float)
    frames = len(boxes)
    values = many_values(torch.tensor([astuple(role.identity) for role in scene.cast]))
    return Observation(
        boxes_TDK=boxes,
        real_TD=np.ones((frames, num), bool),
        embedding_TDE=np.broadcast_to(references(scene), (frames, num, 128)),
        logits_TDV=np.broadcast_to(values.double().numpy(), (frames, num, values.shape[1])),
        tilt_TD=scene.tracks(17)[:, ::EVERY, POSE.index("tilt")].T.astype(float),
        background=scene.background,
        light=scene.light,
        height=64,
    )


def nobody(scene: Scene) -> Observation:
    seen = perfect(scene)
    return replace(seen, real_TD=np.zeros_like(seen.real_TD))


def recast(scene: Scene, identities: list[Identity]) -> Scene:
    cast = [replace(r, identity=i) for r, i in zip(scene.cast, identities, strict=True)]
    return replace(scene, cast=tuple(cast))


@pytest.mark.parametrize("num", [1, 2, 3, 4])
def test_truth_is_itself(num: int) -> None:
    for seed in range(8):
        scene = sample_scene(np.random.default_rng(seed), num)
        own = references(scene)
        seen, clip = perfect(scene), clip_of(scene)
        score = measure.score(seen, clip, own, measure.portrait(seen, own))
        assert np.allclose(score.similarity_S, 1)
        assert not score.missing_S.any()
        assert not score.swapped_S.any()
        assert np.nanmin(score.factors_SF) == 1
        assert score.background and score.light


def test_truth_moves_as_told() -> None:
    right = []
    for seed in range(60):
        scene = sample_scene(np.random.default_rng(seed), 1 + seed % 3)
        own = references(scene)
        seen = perfect(scene)
        right += list(measure.score(seen, clip_of(scene), own, own).motion_S)
    assert np.mean(right) > 0.98


def test_exchanged_roles_are_swapped_and_still_themselves() -> None:
    judged = []
    for seed in range(20):
        scene = sample_scene(np.random.default_rng(seed), 2)
        first, second = (role.identity for role in scene.cast)
        own = references(scene)
        seen = perfect(recast(scene, [second, first]))
        assert np.allclose(measure.similarity(seen, clip_of(scene), own), 1)
        judged.append(measure.swapped(seen, clip_of(scene), own).mean())
    assert np.mean(judged) > 0.95


def test_a_still_is_judged_by_its_one_frame() -> None:
    judged = []
    for seed in range(20):
        scene = sample_scene(np.random.default_rng(seed), 2)
        first, second = (role.identity for role in scene.cast)
        clip = clip_of(scene)
        clip = replace(clip, boxes=clip.boxes[:, :1], visibility=clip.visibility[:, :1])
        for cast, wrong in (([second, first], True), ([first, second], False)):
            seen = perfect(recast(scene, cast))
            seen = replace(
                seen, boxes_TDK=seen.boxes_TDK[:1], real_TD=seen.real_TD[:1],
                embedding_TDE=seen.embedding_TDE[:1],
            )  # fmt: skip
            judged.append(measure.swapped(seen, clip, references(scene)) == wrong)
    assert np.mean(judged) > 0.9


def test_two_of_three_exchanged_leave_the_third_in_its_place() -> None:
    scene = next(
        s
        for s in (sample_scene(np.random.default_rng(i), 3) for i in range(100))
        if all(role.motion == 0 for role in s.cast)
    )
    a, b, c = (role.identity for role in scene.cast)
    swapped = measure.swapped(perfect(recast(scene, [b, a, c])), clip_of(scene), references(scene))
    assert swapped.tolist() == [True, True, False]


def test_strangers_are_not_similar_and_nobody_is_missing_altogether() -> None:
    scene = sample_scene(np.random.default_rng(3), 2)
    other = sample_scene(np.random.default_rng(4), 2)
    own = references(scene)
    seen = perfect(recast(scene, [role.identity for role in other.cast]))
    assert np.abs(measure.similarity(seen, clip_of(scene), own)).max() < 0.35
    empty = nobody(scene)
    assert measure.missing(empty, clip_of(scene), own).all()
    assert (measure.similarity(empty, clip_of(scene), own) == 0).all()
    assert not measure.swapped(empty, clip_of(scene), own).any()
    assert (measure.portrait(empty, own) == 0).all()


def test_one_of_two_missing() -> None:
    scene = sample_scene(np.random.default_rng(0), 2, twins=False)
    own = references(scene)
    seen = perfect(scene)
    real = seen.real_TD.copy()
    real[:, 1] = False
    score = measure.missing(replace(seen, real_TD=real), clip_of(scene), own)
    assert score.tolist() == [False, True]


def test_near_twin_read_as_the_other_counts_one_factor_wrong() -> None:
    scene = sample_scene(np.random.default_rng(1), 1)
    identity = scene.cast[0].identity
    twin = near_twin(identity, np.random.default_rng(0), ("eyes",))
    own = references(scene)
    seen = perfect(recast(scene, [twin]))
    factors = measure.score(seen, clip_of(scene), own, own).factors_SF[0]
    assert np.nansum(factors == 0) == 1
    assert factors[list(oracle.FACTOR_NAMES).index("eyes")] == 0


def test_exchanged_clip_shows_the_second_in_the_first_s_role() -> None:
    scene = sample_scene(np.random.default_rng(0), 2)
    clip = replace(clip_of(scene), frames=np.zeros((5, 64, 96, 3), np.uint8))
    first, second = (role.identity for role in scene.cast)
    wanted = render_clip(recast(scene, [second, first]), 5, 64, 96)
    assert np.array_equal(measure.exchanged(clip), wanted)
    assert not np.array_equal(render_clip(scene, 5, 64, 96), wanted)
