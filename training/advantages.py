"""Group-relative advantages: a member's reward against those of its own group, and who is trained.

A group are the rollouts of one sample (a prompt with its references), known by its number and never
by its text: two samples may say the same of other subjects.

Legend: B rollouts.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SPREADS = ("group", "global")
LEAST_STD = 1e-8  # rewards of a group that differ by less say nothing (ID-Crafter S.12)
MOST = 5.0  # of an advantage, in standard deviations; groups of up to 26 never get there


class Advantages(NamedTuple):
    """value_B fp64, zero sum in each group; 0 where live_B is False: in groups whose rewards are
    all alike, of a single member, or not all finite."""

    value_B: Tensor
    live_B: Tensor


def advantages(reward_B: Tensor, group_B: Tensor, spread: str = "group") -> Advantages:
    """(r - mean of its group) / standard deviation, ID-Crafter equation S.12.

    Args:
        group_B: number of each rollout's group.
        spread: whose standard deviation (of a population): "group", its own group's; "global", the
            one of all live rewards around their groups' means. Both do without small groups' luck
            or with it: under "group" an easy sample weighs as much as a hard one.
    """
    assert spread in SPREADS, spread
    reward_B = reward_B.double()
    _, index_B = group_B.unique(return_inverse=True)
    centred_B, std_B = _around_means(reward_B, index_B)
    live_B = std_B.isfinite() & (std_B > LEAST_STD)
    centred_B = torch.where(live_B, centred_B, 0)
    if spread == "global" and bool(live_B.any()):
        std_B = centred_B[live_B].square().mean().sqrt().expand_as(std_B)
    value_B = (centred_B / torch.where(live_B, std_B, 1)).clamp(-MOST, MOST)
    return Advantages(value_B, live_B)


def _around_means(reward_B: Tensor, index_B: Tensor) -> tuple[Tensor, Tensor]:
    """Each reward minus its group's mean, and its group's standard deviation."""
    num_groups = int(index_B.max()) + 1
    zeros_N = reward_B.new_zeros(num_groups)
    count_N = zeros_N.index_add(0, index_B, torch.ones_like(reward_B))
    mean_N = zeros_N.index_add(0, index_B, reward_B) / count_N
    centred_B = reward_B - mean_N[index_B]
    variance_N = zeros_N.index_add(0, index_B, centred_B.square()) / count_N
    return centred_B, variance_N.sqrt()[index_B]


def best_and_worst(value_G: Tensor, keep: int) -> Tensor:
    """Places of a group's `keep` / 2 highest and `keep` / 2 lowest, in rising order; 0 keeps all.

    As in DanceGRPO: the middle of a group says least and costs as much.
    """
    if keep == 0:
        return torch.arange(len(value_G))
    assert keep % 2 == 0 and keep <= len(value_G), (keep, len(value_G))
    order = value_G.argsort(stable=True)
    return torch.cat([order[: keep // 2], order[len(order) - keep // 2 :]]).sort().values


def weights(live_B: Tensor) -> Tensor:
    """What each rollout counts in the loss: 0 where it is not live, else such that the mean over
    all of them is the mean over the live. fp64 [B]."""
    return live_B.double() * (len(live_B) / live_B.sum().clamp_min(1))
