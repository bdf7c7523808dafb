"""What GRPO minimises at one recorded step: the clipped ratio, and the distance to the reference.

    ratio = exp(log p_now - log p_then)      log-probabilities are means over elements, see flow
    loss  = -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A) + beta KL(now || reference)

ID-Crafter section 3.3, Identity-GRPO equation 8. Both log-probabilities and the KL are those of the
Gaussians that the sampler draws from, with their standard deviation, which has the step's length in
it.

Legend: B rollouts.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """loss_B: what is minimised. ratio_B: new over old likelihood. clipped_B: True where the
    clipping decides, and nothing more is learned of that rollout."""

    loss_B: Tensor
    ratio_B: Tensor
    clipped_B: Tensor


def clip_range(clip: float, num_elements: int) -> float:
    """The clip range of ratios of latents with this many elements.

    A change of the mean by `d` standard deviations (rms) moves the mean log-probability of a row by
    about d / sqrt(num_elements), so that the range must shrink with the size, or it never clips.
    (By d^2 / 2 downwards as well, which is more once d passes 2 / sqrt(num_elements): a policy that
    far away is clipped on one side only.) clip: that d. Flow-GRPO's 1e-4 for 65,536 elements is
    0.03, Identity-GRPO's 1e-3 for 224,640 is 0.5.
    """
    return clip / math.sqrt(num_elements)


def surrogate(
    log_prob_B: Tensor, old_B: Tensor, advantage_B: Tensor, epsilon: float
) -> Surrogate:
    """The clipped objective, negated."""
    ratio_B = (log_prob_B - old_B).exp()
    within_B = ratio_B.clamp(1 - epsilon, 1 + epsilon)
    free_B, held_B = ratio_B * advantage_B, within_B * advantage_B
    return Surrogate(-torch.minimum(free_B, held_B), ratio_B, held_B < free_B)


def gaussian_kl(mean: Tensor, reference: Tensor, std: float) -> Tensor:
    """KL between the laws of one step under two policies, the mean over elements: fp64 [B].

    Both have the same spread, so it is |difference of means|^2 / (2 std^2); as the
    log-probability it is the mean and not the sum.
    """
    return ((mean - reference) / std).double().flatten(1).square().mean(1) / 2


@dataclass
class ClipWatch:
    """Says so when the clip range does not fit: for `patience` updates in a row more than half of
    all ratios were clipped, or none although the policy had moved."""

    patience: int = 50
    most: float = 0.5
    high: int = 0
    none: int = 0
    update: int = -1
    seen: list[tuple[float, bool]] = field(default_factory=list)

    def add(self, update: int, clipped: float, moved: bool) -> None:
        """A share of clipped ratios, of a part of this update. moved: these rollouts are of an
        older policy, so that some ratios should differ from 1."""
        if update != self.update:
            self._close()
            self.update = update
        self.seen.append((clipped, moved))

    def _close(self) -> None:
        if not self.seen:
            return
        share = sum(clipped for clipped, _ in self.seen) / len(self.seen)
        self.high = self.high + 1 if share > self.most else 0
        if any(moved for _, moved in self.seen):
            self.none = self.none + 1 if share == 0 else 0
        self.seen.clear()
        if self.high == self.patience:
            text = self._text("more than half of the", "larger clip or a lower rate")
            warnings.warn(text, stacklevel=3)
        if self.none == self.patience:
            warnings.warn(self._text("none of the", "smaller clip"), stacklevel=3)

    def _text(self, share: str, cure: str) -> str:
        return f"{share} ratios were clipped for {self.patience} updates: try a {cure}"
