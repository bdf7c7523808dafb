"""What reinforcement is judged by and never rewarded for: videos of held-out casts.

    oracle_identity  share of a subject's ten factors that the world's oracle reads back right, mean
                     over subjects. The oracle shares no weights with the encoder that rewards
    worst            the same of the worse subject of each clip
    similarity       cosine to the references, by the encoder that rewards
    copy_paste       MultiID-Bench's score: -1 the truth, +1 a copy of the reference
    motion           share of subjects that do what the prompt says, by the oracle
    amplitude        mean difference between successive frames, of 255; NaN of single ones
    diversity        mean difference between videos of one request from different noise, of 255
    reward           what the run is rewarded for, on these videos

Cases and noise are the same at every look, so that looks are compared case by case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from engine.cache import EncodingCache
from engine.dit import WanDiT
from engine.pipeline import Engine
from training import evaluate
from training.evaluate import Case
from training.measure import Instruments, Score
from training.policy import Task
from training.rewards.door import TOTAL, Reward, judged
from training.rewards.monitor import Monitor
from training.world.clip import Clip

FIGURES = (
    "oracle_identity", "worst", "similarity", "copy_paste", "motion", "amplitude", "diversity",
    TOTAL,
)  # fmt: skip
BATCH = 8
CERTAIN = 2.0
"""Standard errors over the cases by which a figure must have gone the wrong way for an alarm."""
SHOWN = 6  # cases on a sheet

Rows = dict[str, list[float]]
"""Of each figure one number for each case, the mean over its videos."""


@dataclass
class HeldOut:
    """Looks at a transformer among an engine's other parts.

    seeds: videos of each case, at least two. steps: of their denoising. bf16: under autocast.
    noise: another number is other noise for the same cases. rewrite: what is asked for instead of a
    case's own clip; the case is measured by its own.
    shown: the first video of the first cases, as the last look has made them.
    """

    engine: Engine
    tools: Instruments
    reward: Reward
    cases: Sequence[Case]
    seeds: int = 2
    steps: int = 12
    bf16: bool = True
    noise: int = 0
    rewrite: Callable[[Clip], Clip] = field(default=lambda clip: clip)
    cache: EncodingCache = field(default_factory=EncodingCache)
    shown: list[NDArray[np.uint8]] = field(default_factory=list)

    def rows(self, model: nn.Module) -> Rows:
        """The figures, case by case."""
        assert isinstance(model, WanDiT)
        parts = self.engine.encoders, self.engine.preset, self.engine.digest
        generate = evaluate.from_engine(
            Engine(model, *parts, self.cache), steps=self.steps, bf16=self.bf16
        )
        found: Rows = {name: [] for name in FIGURES}
        asked = [self.rewrite(case.clip) for case in self.cases]
        self.shown.clear()
        for start in range(0, len(self.cases), BATCH):
            some = self.cases[start : start + BATCH]
            videos_KB = [
                generate(asked[start : start + BATCH], self._noise(start, len(some), k))
                for k in range(self.seeds)
            ]
            self.shown += list(videos_KB[0])[: SHOWN - len(self.shown)]
            for name, values in self._of(some, videos_KB).items():
                found[name] += values
        return found

    def _noise(self, start: int, num: int, k: int) -> list[int]:
        return [1_000_003 * self.noise + 10_007 * k + start + i for i in range(num)]

    def _of(self, cases: Sequence[Case], videos_KB: Sequence[NDArray[np.uint8]]) -> Rows:
        scores_KB = [
            [evaluate.judge(self.tools, *each) for each in zip(cases, row, strict=True)]
            for row in videos_KB
        ]
        tasks = [self._task(case) for case in cases]
        rewards_KB = np.array(
            [judged(self.reward, torch.from_numpy(x), tasks)[TOTAL].numpy() for x in videos_KB]
        )
        numbers_KB = [[_numbers(score) for score in row] for row in scores_KB]
        rows: Rows = {
            name: [float(np.mean([row[b][name] for row in numbers_KB])) for b in range(len(cases))]
            for name in numbers_KB[0][0]
        }
        videos = np.stack(videos_KB).astype(np.int16)
        rows["amplitude"] = _mean(np.abs(np.diff(videos, axis=2)))
        rows["diversity"] = _mean(np.abs(np.diff(videos, axis=0)))
        return rows | {TOTAL: rewards_KB.mean(0).tolist()}

    def _task(self, case: Case) -> Task:
        asked = evaluate.request(self.engine, case.clip, {})
        return Task(asked[0], tuple(asked[1]), self.engine.encode(*asked))


def _numbers(score: Score) -> dict[str, float]:
    right_S = np.nanmean(score.factors_SF, axis=1)
    return {
        "oracle_identity": float(right_S.mean()),
        "worst": float(right_S.min()),
        "similarity": float(score.similarity_S.mean()),
        "copy_paste": float(score.copy_S.mean()),
        "motion": float(score.motion_S.mean()),
    }


def _mean(videos_KB: NDArray[np.int16]) -> list[float]:
    """Over all but the cases, [K, B, …] -> B numbers."""
    flat_BX = videos_KB.swapaxes(0, 1).reshape(videos_KB.shape[1], -1)
    return [float(x.mean()) if x.size else float("nan") for x in flat_BX]


def means(rows: Rows) -> dict[str, float]:
    """Of each figure, over the cases."""
    return {name: float(np.mean(values)) for name, values in rows.items()}


def spread(values: Sequence[float]) -> float:
    """The standard error of a mean over cases; of one case it is not known."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


@dataclass
class Watch:
    """A run's looks: figures for its log, sheets beside the start, and the alarm.

    before: what the model showed that the run began with.
    """

    heldout: HeldOut
    monitor: Monitor = field(default_factory=lambda: Monitor({}))
    before: list[NDArray[np.uint8]] = field(default_factory=list)

    def begin(self, model: nn.Module) -> Rows:
        """The first look, at the model that the run begins with."""
        rows = self.heldout.rows(model)
        self.before = list(self.heldout.shown)
        wrong = {n: CERTAIN * spread(rows[n]) for n in FIGURES if n != TOTAL}
        better = ("oracle_identity", "worst", "motion", "amplitude", "diversity")
        self.monitor = Monitor(
            {n: wrong[n] for n in better}, {"copy_paste": wrong["copy_paste"]},
            gain=spread(rows[TOTAL]),
        )  # fmt: skip
        found = means(rows)
        self.monitor.look(found[TOTAL], found)
        return rows

    def look(self, model: nn.Module) -> dict[str, float]:
        """Means over the cases, as `held_…`, and how many figures part ways with the reward."""
        found = means(self.heldout.rows(model))
        apart = self.monitor.look(found[TOTAL], found)
        return {f"held_{n}": x for n, x in found.items()} | {"held_apart": float(len(apart))}

    def sheet(self, model: nn.Module, path: Path) -> None:
        """What the last look saw: references, then the start's frames above today's."""
        lines = []
        cases = self.heldout.cases
        for case, old, new in zip(cases, self.before, self.heldout.shown, strict=False):
            moments = np.linspace(0, len(new) - 1, 4).round().astype(int)
            made = np.concatenate([np.concatenate(video[moments], 1) for video in (old, new)])
            side = made.shape[0] // 2
            pictures = [Image.fromarray(r).resize((side, side)) for r in case.clip.references]
            cast = [np.asarray(picture) for picture in pictures]
            left = np.full((made.shape[0], side * len(cast), 3), 40, np.uint8)
            left[side // 2 : side // 2 + side] = np.concatenate(cast, 1)
            lines.append(np.concatenate([left, made], 1))
        width = max(line.shape[1] for line in lines)
        wide = [np.pad(line, ((0, 4), (width - line.shape[1], 0), (0, 0))) for line in lines]
        Image.fromarray(np.concatenate(wide)).save(path)
