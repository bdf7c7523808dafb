import numpy as np
import pytest

from training.world.identity import FACTOR_NAMES, FACTORS, near_twin, sample_identity
from training.world.render import random_pose, render_clip, render_reference
from training.world.scene import BACKGROUNDS, LIGHTS, Scene, sample_scene


def test_deterministic_by_seed():
    scene = sample_scene(np.random.default_rng(0), 4)
    assert np.array_equal(render_clip(scene), render_clip(scene))


def test_every_value_of_every_factor_can_be_drawn_and_seen():
    """Changing one factor of an identity, with pose and light fixed, changes the picture."""
    rng = np.random.default_rng(1)
    pose = random_pose(rng)
    for name in FACTOR_NAMES:
        for _ in range(len(FACTORS[name])):
            identity = sample_identity(rng)
            if name == "hat_color" and not identity.hat:
                continue
            if name == "accessory_color" and not identity.accessory:
                continue
            twin = near_twin(identity, rng, factors=(name,))
            who = (identity, twin)
            pair = [render_reference(i, np.random.default_rng(9), 64, pose) for i in who]
            a, b = pair
            difference = np.abs(a.astype(int) - b.astype(int)).sum(-1) > 60
            assert difference.sum() >= 8, (name, identity, twin)


def test_edges_are_anti_aliased():
    """A picture drawn large and shrunk is close to the picture drawn small: no jagged edges."""
    rng = np.random.default_rng(2)
    identity, pose = sample_identity(rng), random_pose(rng)
    small = render_reference(identity, np.random.default_rng(5), 64, pose).astype(float)
    large = render_reference(identity, np.random.default_rng(5), 256, pose).astype(float)
    shrunk = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 4.0


def test_cross_pairs_change_the_picture_and_same_pose_does_not_depend_on_the_draw():
    rng = np.random.default_rng(3)
    scene = sample_scene(rng, 1)
    identity, pose = scene.cast[0].identity, scene.tracks(17)[0, 8]
    cross = [render_reference(identity, np.random.default_rng(s), 64) for s in (1, 2)]
    assert np.abs(cross[0].astype(int) - cross[1].astype(int)).mean() > 5
    same = render_reference(identity, np.random.default_rng(1), 64, pose)
    assert np.array_equal(same, render_reference(identity, np.random.default_rng(1), 64, pose))


@pytest.mark.parametrize("background", range(len(BACKGROUNDS)))
def test_backgrounds_and_lights_are_told_apart(background: int):
    cast = sample_scene(np.random.default_rng(4), 1).cast
    means = [
        render_clip(Scene(background, light, cast, 7), 1).astype(float).mean()
        for light in range(len(LIGHTS))
    ]
    assert means[0] > means[2] + 25


def test_any_size():
    scene = sample_scene(np.random.default_rng(5), 3)
    assert render_clip(scene, 5, 96, 96).shape == (5, 96, 96, 3)
    assert render_clip(scene, 1, 32, 128).dtype == np.uint8
