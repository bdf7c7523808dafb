"""Closed forms: who is who by likeness, by place, and how much of a copy it is."""

from itertools import permutations

import numpy as np
import pytest

from engine.matching import NOBODY, assign, copy_paste


def test_assignment_per_frame_is_the_best_permutation() -> None:
    rng = np.random.default_rng(0)
    gain = rng.uniform(-1, 1, (20, 3, 3))
    who = assign(gain, np.ones((20, 3), bool), rng.uniform(0, 1, (20, 3, 2)), 0.0)
    for t in range(20):
        best = max(permutations(range(3)), key=lambda p: sum(gain[t, p[k], k] for k in range(3)))
        assert tuple(who[t]) == best


def test_assignment_never_gives_one_detection_to_two() -> None:
    gain = np.ones((5, 2, 3))
    real = np.array([[True, False], [True, True], [False, False], [True, True], [False, True]])
    who = assign(gain, real, np.zeros((5, 2, 2)), 0.5)
    for t in range(5):
        given = who[t][who[t] != NOBODY]
        assert len(set(given)) == len(given) == real[t].sum()
        assert real[t][given].all()


def test_smoothing_holds_on_to_a_place_when_looks_do_not_tell() -> None:
    places = np.array([[0.2, 0.5], [1.2, 0.5]])
    centre = np.stack([places if t % 2 else places[::-1] for t in range(6)])
    gain = np.zeros((6, 2, 2))
    gain[0] = [[0.0, 0.5], [0.5, 0.0]]
    who = assign(gain, np.ones((6, 2), bool), centre, 0.5)
    path = np.take_along_axis(centre[..., 0], who, axis=1)
    assert np.allclose(path, path[0])
    assert path[0].tolist() == [0.2, 1.2]


def test_copy_paste_is_minus_one_at_the_truth_and_one_at_the_reference() -> None:
    a, b = np.eye(4)[:1], np.eye(4)[1:2]
    assert copy_paste(a, a, b) == pytest.approx(-1)
    assert copy_paste(b, a, b) == pytest.approx(1)
    assert copy_paste(np.eye(4)[2:3], a, b) == pytest.approx(0)
    assert copy_paste(a, b, b) == 0
