"""Look-alikes through real workers: in small, every video is its own; and a leak would be seen."""

from pathlib import Path

import numpy as np
import pytest

from bench.contamination import asks, clean, faces, picture_of, real, scripted, strange, verdict


def test_look_alikes_are_alike_and_not_the_same() -> None:
    found = faces(101, seed=1)
    assert len({one.tobytes() for one in found}) == 101
    for number in (1, 2, 3):
        change = np.abs(found[number].astype(int) - found[0].astype(int))
        assert change.sum() == 1
    assert np.abs(found[4].astype(int) - found[0].astype(int)).sum() > 1


def test_only_the_references_tell_two_requests_apart() -> None:
    jobs = asks(16, 8, 4, seed=1)
    assert [job.number for job in jobs] == 2 * list(range(8))
    assert {(job.prompt, job.steps) for job in jobs} == {
        ("@anna waves", 4), ("@anna waves and @ben waves", 4),
    }  # fmt: skip
    assert [face.rgb for face in jobs[2].faces] == [face.rgb for face in jobs[3].faces][::-1]
    assert {job.kept for job in jobs} == {True, False}


def test_whose_a_video_is() -> None:
    right = [("a", "A"), ("b", "B")]
    assert verdict(("a", "A"), 0, right) == "own"
    assert verdict(("b", "B"), 0, right) == verdict(("b", "A"), 0, right) == "foreign"
    assert verdict(("c", "A"), 0, right) == "unknown"
    one, other = (ask.faces[0] for ask in asks(2, 2, 4, seed=1))
    assert strange(picture_of(one), other) and not strange(picture_of(one), one)


def test_clean_is_all_their_own_and_told_apart() -> None:
    good = {"jobs": 4, "requests": 2, "distinct": 2, "own": 4, "pictures": 0}
    assert clean({"scripted": good})
    for wrong in ({"own": 3}, {"pictures": 1}, {"distinct": 1}):
        assert not clean({"scripted": good, "real": good | wrong})


def test_small() -> None:
    found = scripted(8, 1, seed=1)
    assert clean({"scripted": found}), found
    assert (found["jobs"], found["requests"], found["foreign"]) == (8, 4, 0)


@pytest.mark.slow
def test_small_with_a_real_engine_and_its_encodings(random_model: Path) -> None:
    found = real(8, 1, random_model, steps=2, seed=1)
    assert clean({"real": found}), found
    assert (found["own"], found["foreign"]) == (8, 0)
    # Two tenants asked twice for two of four requests each, and for the prompt without words;
    # photos' latents are kept besides.
    assert found["encodings"] >= 2 * (2 + 1)
