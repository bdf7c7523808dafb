import numpy as np
import pytest

from training.world.clip import sample_clip
from training.world.identity import is_held_out


def test_shapes_and_determinism():
    clip, again = sample_clip(7, num_subjects=3), sample_clip(7, num_subjects=3)
    assert clip.frames.shape == (17, 64, 96, 3) and clip.frames.dtype == np.uint8
    assert clip.references.shape == (3, 64, 64, 3)
    assert clip.boxes.shape == (3, 17, 4) and clip.visibility.shape == (3, 17)
    assert np.array_equal(clip.frames, again.frames)
    assert np.array_equal(clip.references, again.references)
    assert clip.caption == again.caption


def test_splits_are_disjoint_draws():
    train, held = sample_clip(3), sample_clip(3, split="heldout")
    assert not any(is_held_out(r.identity) for r in train.scene.cast)
    assert all(is_held_out(r.identity) for r in held.scene.cast)


def test_reference_kinds_share_the_clip_and_differ_in_the_pictures():
    cross, same = (sample_clip(5, num_subjects=2, reference=kind) for kind in ("cross", "same"))
    assert np.array_equal(cross.frames, same.frames)
    assert np.abs(cross.references.astype(int) - same.references.astype(int)).mean() > 3


def test_one_to_four_subjects():
    assert {len(sample_clip(seed).scene.cast) for seed in range(30)} == {1, 2, 3, 4}


@pytest.mark.parametrize("bad", [{"reference": "copied"}, {"split": "test"}])
def test_unknown_options_are_refused(bad: dict[str, str]):
    with pytest.raises(ValueError, match=next(iter(bad))):
        sample_clip(0, **bad)  # type: ignore[arg-type]


def test_a_still_is_one_frame_of_its_clip_with_the_same_words_and_pictures():
    moments = set()
    for seed in range(12):
        clip, still = sample_clip(seed), sample_clip(seed, still=True)
        same = [k for k in range(17) if np.array_equal(clip.frames[k], still.frames[0])]
        assert still.frames.shape == (1, 64, 96, 3) and same
        assert any(np.array_equal(still.boxes[:, 0], clip.boxes[:, k]) for k in same)
        assert np.array_equal(still.references, clip.references)
        assert still.caption == clip.caption
        moments.add(same[0])
    assert len(moments) > 4
