"""Seeds, when to go on and which one is given, in closed form."""

import pytest

from engine.candidates import best, goes_on, seed_of
from engine.spec import MAX_SEED, Wish


def made_of(wish: Wish, overall: list[float]) -> int:
    """How many of these candidates are made."""
    made: list[float] = []
    while goes_on(wish, made):
        made.append(overall[len(made)])
    return len(made)


def test_the_first_candidate_is_the_plain_video() -> None:
    assert [seed_of(seed, 0) for seed in (0, 7, MAX_SEED)] == [0, 7, MAX_SEED]


def test_seeds_are_fixed_distinct_and_within_bounds() -> None:
    # Written down: a job that is resumed by a newer worker must get the same candidates.
    assert [seed_of(7, k) for k in (1, 2, 3)] == [
        227494588231907,
        4120374752360716,
        7934762040677047,
    ]
    every = {seed_of(seed, k) for seed in range(200) for k in range(7)}
    assert len(every) == 200 * 7
    assert all(0 <= seed <= MAX_SEED for seed in every)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_n_are_made_however_good_the_first(n: int) -> None:
    assert made_of(Wish(n=n), [1.0] * 9) == n
    assert made_of(Wish(n=n, min_identity=0.5), [1.0] * 9) == n
    assert made_of(Wish(n=n), [0.0] * 9) == n, "nothing is asked of them"


def test_reseeds_end_when_one_is_like_enough_or_none_is_left() -> None:
    wish = Wish(n=1, min_identity=0.5, max_reseeds=3)
    assert made_of(wish, [0.5, 0.9, 0.9, 0.9, 0.9]) == 1, "reached, not passed"
    assert made_of(wish, [0.4, 0.49, 0.6, 0.9, 0.9]) == 3
    assert made_of(wish, [0.4] * 9) == 4 == wish.most
    assert made_of(Wish(n=2, min_identity=0.5, max_reseeds=0), [0.1] * 9) == 2
    # One of the first n is enough, wherever it stands.
    assert made_of(Wish(n=3, min_identity=0.5), [0.6, 0.1, 0.1, 0.9]) == 3


def test_the_likest_is_given_and_the_first_of_equals() -> None:
    assert best([0.3]) == 0
    assert best([0.3, 0.5, 0.4]) == 1
    assert best([0.2, 0.5, 0.5]) == 1
    assert best([0.0, 0.0]) == 0
    with pytest.raises(ValueError, match="at least one"):
        best([])
