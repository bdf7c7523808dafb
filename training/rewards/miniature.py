"""The miniature's own scorers as a reward: the judge that its model folder brings.

Legend: B rollouts, F frames, H W pixels, S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.likeness import Judge
from training.policy import Task
from training.rewards.composite import Composite, faces
from training.rewards.door import TOTAL


@dataclass(frozen=True)
class Fidelity:
    """ID-Crafter's fidelity (equations 6 and 7): who is there, and as like its picture as the judge
    says. Its quality part needs scorers that the miniature does not have yet: composite must leave
    it out.

    face: a subject's cosine to its reference, best match of each observed frame, 0 where none is.
    subject: share of subjects that are neither missing nor taken for another one, over one plus the
    number of strangers.
    """

    judge: Judge
    composite: Composite = field(default_factory=lambda: Composite(fidelity=1.0))

    def __post_init__(self) -> None:
        if self.composite.fidelity != 1:
            raise ValueError("fidelity: must be 1, there are no scorers of quality here")

    def __call__(self, frames_BFHWC: Tensor, samples: Sequence[Task]) -> dict[str, Tensor]:
        rows = [
            self._row(frames_FHWC, task)
            for frames_FHWC, task in zip(frames_BFHWC, samples, strict=True)
        ]
        names = ("face_mean", "face_least", "subject", TOTAL)
        return {name: torch.cat([row[name] for row in rows]) for name in names}

    def _row(self, frames_FHWC: Tensor, task: Task) -> dict[str, Tensor]:
        seen = self.judge.score(frames_FHWC.numpy(), task.references)
        alike = [one.similarity for one in seen.subjects]
        present = sum(not (one.missing or one.swapped) for one in seen.subjects)
        face_1S = faces(torch.tensor([alike], dtype=torch.float64))
        share = present / len(seen.subjects) / (1 + max(seen.strangers, 0.0))
        subject_1 = torch.tensor([share], dtype=torch.float64)
        nothing_1 = torch.zeros(1, dtype=torch.float64)
        return self.composite(face_1S, subject_1, nothing_1, nothing_1)
