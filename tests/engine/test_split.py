"""A sequence over processes: how it is cut, and what the exchanges carry (two real processes)."""

import pytest
import torch

from engine.split import shares
from tests.engine.processes import together


@pytest.mark.parametrize("total, size", [(7, 2), (8, 4), (3, 4), (0, 2)])
def test_shares_are_those_of_tensor_split(total, size):
    parts = torch.zeros(total).tensor_split(size)
    assert shares(total, size) == [len(part) for part in parts]


def _there_and_back(team):
    split, told = team.split, []
    generator = torch.Generator().manual_seed(0)
    for length, heads in ((7, 3), (8, 4), (3, 5)):
        qkv = [torch.randn(2, length, heads, 6, generator=generator) for _ in range(3)]
        q, k, v = qkv
        qkv[2] = v = v.bfloat16()
        parts = [split.part(x) for x in qkv]
        told.append(torch.equal(split.whole(parts[0].flatten(2), length), q.flatten(2)))
        mine = [x.tensor_split(split.size, dim=2)[split.rank] for x in qkv]
        found = split.to_heads(*parts, length)
        told += [torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(mine, found, strict=True)]
        back = split.to_tokens(found[1].flatten(2), heads)
        told.append(torch.equal(back, parts[1].flatten(2)))
    return told


@pytest.mark.parametrize("size", [2, 3])
def test_every_token_and_head_arrives_where_it_should(size, tmp_path):
    """Lengths and heads that do not divide; values of another precision keep theirs."""
    told = together(_there_and_back, f"sequence={size}", size, tmp_path)
    assert told == [[True] * 15] * size
