"""ID-Crafter's composite reward, section 3.3, equations 5 to 8.

    total    = .6 fidelity + .4 quality                            (5)
    fidelity = (1 - alpha) face + alpha subject                    (6)
    face     = (1 - gamma) mean over subjects + gamma the least    (7)
    quality  = (1 - beta) aesthetics + beta naturalness            (8)

The paper does not say on which scales its scores are; here each is in [0, 1] before it is weighed.

Legend: B rollouts, S subjects.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.rewards.door import TOTAL


@dataclass(frozen=True)
class Composite:
    """The paper's weights. quality is 1 - fidelity.

    Raises:
        ValueError: naming the weight that is not in [0, 1].
    """

    fidelity: float = 0.6
    alpha: float = 0.5
    gamma: float = 0.5
    beta: float = 0.4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {value} is not in 0 … 1")

    @property
    def weighs_naturalness(self) -> bool:
        return self.fidelity < 1 and self.beta > 0

    def __call__(
        self, face_BS: Tensor, subject_B: Tensor, aesthetics_B: Tensor, naturalness_B: Tensor
    ) -> dict[str, Tensor]:
        """Every part by its name, and the total. A subject whose face is not found scores 0."""
        mean_B, least_B = face_BS.mean(1), face_BS.min(1).values
        face_B = (1 - self.gamma) * mean_B + self.gamma * least_B
        fidelity_B = (1 - self.alpha) * face_B + self.alpha * subject_B
        quality_B = (1 - self.beta) * aesthetics_B + self.beta * naturalness_B
        return {
            "face_mean": mean_B,
            "face_least": least_B,
            "subject": subject_B,
            "aesthetics": aesthetics_B,
            "naturalness": naturalness_B,
            TOTAL: self.fidelity * fidelity_B + (1 - self.fidelity) * quality_B,
        }


def unit(score: Tensor, low: float, high: float) -> Tensor:
    """A score on its own scale as a number in [0, 1]; what is not a number stays so."""
    return ((score.double() - low) / (high - low)).clamp(0, 1)


def faces(found_BS: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Similarities of subjects to their references in [0, 1]; NaN, for a face that was not found,
    is 0: leaving it out would reward losing a subject."""
    return torch.where(found_BS.isnan(), 0, unit(found_BS, low, high))
