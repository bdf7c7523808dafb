"""The composite reward by hand numbers: demand 24 on reinforcement."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.rewards.composite import Composite, faces, unit
from training.rewards.door import TOTAL


def row(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


FACES = row(0.8, 0.2)[None]


def test_demand_24_equations_5_to_8() -> None:
    """face .5 * .5 + .5 * .2 = .35; fidelity .5 * .35 + .5 * .7 = .525; quality .6 * .9 + .4 * .4 =
    .7; total .6 * .525 + .4 * .7 = .595."""
    found = Composite()(FACES, row(0.7), row(0.9), row(0.4))
    assert float(found[TOTAL]) == pytest.approx(0.595)
    assert float(found["face_mean"]) == pytest.approx(0.5)
    assert float(found["face_least"]) == pytest.approx(0.2)


@pytest.mark.parametrize(("gamma", "want"), [(0.0, 0.5), (1.0, 0.2), (0.25, 0.425)])
def test_demand_24_gamma_goes_from_the_mean_to_the_least(gamma: float, want: float) -> None:
    only = Composite(fidelity=1.0, alpha=0.0, gamma=gamma)
    assert float(only(FACES, row(0), row(0), row(0))[TOTAL]) == pytest.approx(want)


def test_demand_24_one_subject_is_mean_and_least() -> None:
    found = Composite()(row(0.3)[None], row(0), row(0), row(0))
    assert found["face_mean"] == found["face_least"]


def test_demand_24_a_missing_face_has_a_floor_and_a_failed_scorer_has_none() -> None:
    found = faces(torch.tensor([[0.5, float("nan")], [1.5, -0.5]]))
    assert found.tolist() == [[0.5, 0.0], [1.0, 0.0]]
    nan = row(float("nan"))
    assert Composite()(FACES, nan, row(1), row(1))[TOTAL].isnan().all()


def test_demand_24_scales_and_weights() -> None:
    assert unit(row(1, 3, 5, 9), 1, 5).tolist() == [0, 0.5, 1, 1]
    ones = Composite()(torch.ones(1, 2), row(1), row(1), row(1))
    assert float(ones[TOTAL]) == pytest.approx(1)  # the weights sum to 1
    with pytest.raises(ValueError, match="^alpha:"):
        Composite(alpha=1.5)
