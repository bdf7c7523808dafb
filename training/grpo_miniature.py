"""Recipe `grpo_miniature`: the shipped miniature learns by reward to keep its characters.

Requests are for two characters of the training split; rollouts are single frames, for these show
who somebody is at a tenth of a clip's cost; the reward are the world's own scorers. What it is
judged by are videos of held-out characters (`training.heldout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from engine.errors import CheckpointError
from engine.flow import Noise
from engine.likeness import load_judge
from engine.pipeline import Engine
from engine.presets import MINIATURE
from engine.spec import Guidance, Reference, Spec
from training import evaluate
from training.grpo_config import GrpoConfig
from training.grpo_run import GrpoRun, learn
from training.heldout import HeldOut, Watch
from training.loop import LoopConfig, Outcome
from training.measure import Instruments
from training.policy import Task
from training.prompt_tuning import tuned_clip
from training.rewards.chance import Chance
from training.rewards.composite import Composite
from training.rewards.door import Reward
from training.rewards.miniature import Miniature
from training.rewards.naturalness import Naturalness
from training.rollout import RolloutConfig
from training.world.clip import Clip, sample_clip

SHIPPED = Path("models/miniature")


@dataclass(frozen=True)
class MiniatureGrpo:
    """run: its numbers. composite: weights of the reward. tasks: requests, each of so many
    subjects and num_frames. cases, seeds, steps: of the held-out looks, see `HeldOut`. tuned:
    prompts describe their casts (`training.prompt_tuning`), in training and at looks. chance:
    learned from are numbers drawn by lot, as a control; looks still tell the reward."""

    run: GrpoRun
    composite: Composite = field(default_factory=Composite)
    tasks: int = 512
    subjects: int = 2
    num_frames: int = 1
    cases: int = 24
    seeds: int = 2
    steps: int = 8
    model: Path = SHIPPED
    tuned: bool = False
    chance: bool = False


def miniature() -> MiniatureGrpo:
    """For one core: an update is 64 rollouts of 5 steps, of which two successive ones among the
    first three draw noise; of each group the two best and the two worst are learned from. Under the
    guidance that the model is served with: without it rollouts show half as much of anybody."""
    loop = LoopConfig(
        "grpo_miniature", steps=120, lr=2.5e-4, muon_lr=None, betas=(0.9, 0.95), warmup=1,
        schedule="constant", ema=0.8, sheet_every=20, log_every=1,
    )  # fmt: skip
    rollout = RolloutConfig(
        5, noise=Noise("exact", 0.7), window=2, reach=3, same_noise=True, branch=True
    )
    config = GrpoConfig(loop, rollout, group_size=8, groups=8, rows=16, keep=4)
    return MiniatureGrpo(GrpoRun(config, guidance=Guidance(scale=MINIATURE.defaults.guidance)))


def on_clips(asked: MiniatureGrpo, by_frame: bool = True) -> MiniatureGrpo:
    """The same on whole clips, in about the same time: fewer updates at twice the rate, and all
    members of a group are learned from. by_frame: with a credit for each latent frame."""
    config = asked.run.config
    assert config.loop.steps is not None
    steps = max(1, round(0.22 * config.loop.steps))
    loop = replace(config.loop, lr=2 * config.loop.lr, steps=steps)
    rollout = replace(config.rollout, by_frame=by_frame)
    config = replace(config, loop=loop, rollout=rollout, keep=0)
    clip = MINIATURE.defaults.num_frames
    return replace(asked, run=replace(asked.run, config=config), num_frames=clip)


def tasks_of(clips: Sequence[Clip], engine: Engine, num_frames: int) -> list[Task]:
    """The clips' captions and pictures as requests, encoded."""
    made = []
    for clip in clips:
        names = clip.caption.names
        cast = [
            Reference.from_image(name, Image.fromarray(picture))
            for name, picture in zip(names, clip.references, strict=True)
        ]
        spec = Spec.of(engine.preset, clip.caption.prompt, names, num_frames=num_frames)
        made.append(Task.of(spec, cast, engine.encoder))
    return made


def cast_clips(num: int, num_subjects: int) -> list[Clip]:
    """Clips of the training split, of whom only captions and references are asked for."""
    return [
        sample_clip(seed, num_subjects=num_subjects, style="names", still=True)
        for seed in range(num)
    ]


def reward_of(engine: Engine, folder: Path, composite: Composite) -> Miniature:
    """The scorers that a model folder brings.

    Raises:
        CheckpointError: it brings no judge.
    """
    judge = load_judge(folder)
    if judge is None:
        raise CheckpointError(f"{folder} brings nobody who tells likeness")
    assert engine.encoders.vlm is not None
    return Miniature(judge, Naturalness(engine.encoders.vlm), composite)


def held_out(asked: MiniatureGrpo, engine: Engine, reward: Miniature) -> HeldOut:
    """The looks at videos of held-out casts of as many subjects."""
    tools = Instruments.load(asked.model)
    clips = evaluate.sample_clips(asked.cases, asked.subjects)
    looks = HeldOut(
        engine, tools, reward, evaluate.prepare(clips, tools), asked.seeds, asked.steps
    )
    vlm = engine.encoders.vlm
    return replace(looks, rewrite=partial(tuned_clip, vlm=vlm)) if asked.tuned and vlm else looks


def train(asked: MiniatureGrpo, folder: Path) -> Outcome:
    """The run; goes on where it was interrupted."""
    torch.set_num_threads(1)
    engine = Engine.load(asked.model)
    reward = reward_of(engine, asked.model, asked.composite)
    clips = cast_clips(asked.tasks, asked.subjects)
    if asked.tuned and engine.encoders.vlm is not None:
        clips = [tuned_clip(clip, engine.encoders.vlm) for clip in clips]
    tasks = tasks_of(clips, engine, asked.num_frames)
    watch = Watch(held_out(asked, engine, reward)) if asked.run.config.loop.sheet_every else None
    learned: Reward = Chance(reward) if asked.chance else reward
    return learn(asked.run, engine, learned, tasks, folder, watch)


def run() -> None:
    """Recipe `grpo_miniature`: export at runs/grpo_miniature."""
    train(miniature(), Path("runs/grpo_miniature"))
