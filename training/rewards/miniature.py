"""The miniature's own scorers as a reward: what its model folder brings, and a look at the pixels.

    face, subject   `engine.likeness`: detector and identity encoder
    aesthetics      `quality`: sharp and free of grain
    naturalness     `naturalness`: the VLM's answers about prompt and frames agree

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
from training.rewards.naturalness import Naturalness
from training.rewards.quality import quality


@dataclass(frozen=True)
class Miniature:
    """ID-Crafter's composite reward (equations 5 to 8) of the drawn world.

    face: a subject's cosine to its reference, best match of each observed frame, 0 where none is.
    subject: share of subjects that are neither missing nor taken for another one, over one plus the
    number of strangers.
    naturalness: None leaves it at 0, for composites in which it has no weight.

    Raises:
        ValueError: the composite weighs naturalness, and there is nobody to tell it.
    """

    judge: Judge
    naturalness: Naturalness | None = None
    composite: Composite = field(default_factory=Composite)

    def __post_init__(self) -> None:
        if self.composite.weighs_naturalness and self.naturalness is None:
            raise ValueError("naturalness: has weight in the composite, and is not there")

    def __call__(self, frames_BFHWC: Tensor, samples: Sequence[Task]) -> dict[str, Tensor]:
        natural_B = torch.zeros(len(samples), dtype=torch.float64)
        if self.naturalness is not None:
            natural_B = self.naturalness(frames_BFHWC, samples)
        clean_B = quality(frames_BFHWC)
        rows = [
            self._row(frames_FHWC, task, clean_1, natural_1)
            for frames_FHWC, task, clean_1, natural_1 in zip(
                frames_BFHWC, samples, clean_B.split(1), natural_B.split(1), strict=True
            )
        ]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _row(
        self, frames_FHWC: Tensor, task: Task, clean_1: Tensor, natural_1: Tensor
    ) -> dict[str, Tensor]:
        seen = self.judge.score(frames_FHWC.numpy(), task.references)
        alike = [one.similarity for one in seen.subjects]
        present = sum(not (one.missing or one.swapped) for one in seen.subjects)
        face_1S = faces(torch.tensor([alike], dtype=torch.float64))
        share = present / len(seen.subjects) / (1 + max(seen.strangers, 0.0))
        subject_1 = torch.tensor([share], dtype=torch.float64)
        return self.composite(face_1S, subject_1, clean_1, natural_1)
