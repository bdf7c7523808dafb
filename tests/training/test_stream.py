from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from torch import Tensor

from training.dist import Group
from training.stream import batches, seed_for


@dataclass(frozen=True)
class Plan:
    seed: int = 3
    accumulate: int = 2
    prefetch: int = 0


def draw(index: int) -> Tensor:
    return torch.cat([torch.tensor([float(index)]), torch.rand(3)])


def taken(plan: Plan, step: int, num: int, group: Group) -> list[tuple[int, Tensor]]:
    return list(islice(batches(plan, draw, step, group), num))


ALONE = Group(0, 1)


def test_a_seed_belongs_to_its_run_and_batch():
    numbers = set()
    for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1)):
        seed_for(seed, index)
        numbers.add(float(torch.rand(1)))
    assert len(numbers) == 4


def test_starting_later_gives_the_same_batches():
    whole = taken(Plan(), 0, 6, ALONE)
    rest = taken(Plan(), 1, 4, ALONE)
    for (i, a), (j, b) in zip(whole[2:], rest, strict=True):
        assert i == j and torch.equal(a, b)


def test_processes_share_the_batches_of_an_update():
    one = [i for i, _ in taken(Plan(accumulate=4), 0, 8, ALONE)]
    two = [[i for i, _ in taken(Plan(accumulate=2), 0, 4, Group(rank, 2))] for rank in (0, 1)]
    assert sorted(two[0][:2] + two[1][:2]) == one[:4]
    assert sorted(two[0] + two[1]) == one


@pytest.mark.parametrize("step", [0, 2])
def test_worker_processes_make_the_same_batches(step: int):
    here = taken(Plan(), step, 4, ALONE)
    there = taken(Plan(prefetch=1), step, 4, ALONE)
    for (i, a), (j, b) in zip(here, there, strict=True):
        assert i == j and torch.equal(a, b)
