"""Which tokens an update computes, and when all of them."""

from __future__ import annotations

import torch
from torch import nn

from training.masked import Kept, kept_cells, kept_tokens


def test_subjects_are_kept_first_and_the_rest_by_lot() -> None:
    weight = torch.ones(2, 2, 4, 6)
    weight[0, 1, 1, 3] = 5.0  # touches token 6 + 1 of 12
    torch.manual_seed(0)
    drawn = [kept_tokens(weight, (1, 2, 2), 0.25) for _ in range(200)]
    kept = torch.stack(drawn)
    assert kept.shape == (200, 2, 3) and bool((kept.diff(dim=2) > 0).all())
    assert bool((kept[:, 0] == 7).any(1).all())
    share = (kept[:, 1] == 7).any(1).float().mean()
    assert 0.15 < float(share) < 0.35
    everything = kept_tokens(weight, (1, 2, 2), 1.0)
    assert everything.tolist() == [list(range(12))] * 2


def test_the_cells_of_tokens() -> None:
    cells = kept_cells(torch.tensor([[0, 11]]), (2, 4, 6), (1, 2, 2))
    want = torch.zeros(1, 2, 4, 6, dtype=torch.bool)
    want[0, 0, :2, :2] = want[0, 1, 2:, 4:] = True
    assert torch.equal(cells, want)


def test_all_are_kept_inside_the_form_that_ships() -> None:
    kept, net, seen = Kept(0.5), nn.Linear(1, 1), []
    around = kept.all_while(None)
    assert around is not None
    with around(net):
        seen.append(kept.share)
    assert seen == [1.0] and kept.share == 0.5
    assert Kept(1.0).all_while(None) is None
