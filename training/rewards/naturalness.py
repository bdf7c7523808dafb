"""Does the video show what the prompt says? The VLM is asked about the frames.

    frames ─ "where is this", "what time is it", "how many characters" ─▶ probability of the answers
    prompt ─ its grammar (`training.world.caption`), number of references ─▶ the right answers

ID-Crafter's NaturalScore (section 3.3, A.2) asks a large VLM for a mark from 1 to 5. The
miniature's knows no marks; but it was taught to answer these questions about frames, so its
probability of the right answer is the mark: the mean over the three. It does not understand
prompts well enough to be asked about them too, hence the grammar.

Legend: B rollouts, F frames of one, Q questions, W words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.spec import text_of
from engine.vlm import VLM, content, conversation
from training.policy import Task
from training.rewards.door import RewardError
from training.vlm_batch import collate, read
from training.vlm_data import HOW_MANY, NUM_FRAMES, NUM_WORDS, WHEN, WHERE
from training.world.caption import parse
from training.world.scene import LIGHTS

ASKED = (WHERE, WHEN, HOW_MANY)


@dataclass(frozen=True)
class Naturalness:
    """The judge. vlm: the miniature's."""

    vlm: VLM

    def __call__(self, frames_BFHWC: Tensor, samples: Sequence[Task]) -> Tensor:
        """uint8 clips -> fp64 [B] in [0, 1].

        Raises:
            RewardError: a prompt is not of the world's grammar.
        """
        seen_BQW = self.answers(frames_BFHWC)
        right_BQ = torch.tensor([self.right(task) for task in samples])
        return seen_BQW.gather(2, right_BQ[..., None])[..., 0].mean(1)

    def right(self, task: Task) -> list[int]:
        """The tokens with which the right answers begin."""
        text, _ = text_of(task.spec.prompt, task.spec.names)
        told = parse(text)
        if "background" not in told:
            raise RewardError(f"no background of the drawn world is told in {text!r}")
        words = (
            told["background"], told.get("light", LIGHTS[0]), NUM_WORDS[len(task.references)]
        )  # fmt: skip
        return [self.vlm.tokenizer.encode(f" {w}", add_special_tokens=False).ids[0] for w in words]

    @torch.no_grad()
    def answers(self, frames_BFHWC: Tensor) -> Tensor:
        """Probabilities of the first word of each answer about each clip, fp64 [B, Q, W]."""
        num = frames_BFHWC.shape[1]
        moments = np.linspace(0, num - 1, min(num, NUM_FRAMES)).round().astype(int)
        clips = [list(clip) for clip in frames_BFHWC[:, moments].numpy()]
        turns = [conversation(content("", (), len(moments), question)) for question in ASKED]
        pictures = [clip for clip in clips for _ in ASKED]
        batch = collate(turns * len(clips), pictures, self.vlm.tokenizer, self.vlm.config)
        x_BLD, _ = read(self.vlm.model, batch)
        x_BD = x_BLD[range(len(x_BLD)), batch.mask_BL.sum(1) - 1]
        told_BW = self.vlm.model.lm_head(x_BD).double().softmax(-1)
        return told_BW.unflatten(0, (len(clips), len(ASKED)))
