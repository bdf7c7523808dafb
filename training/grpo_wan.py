"""Reinforcement of the published sizes, on GPUs: `grpo_1_3b`, `grpo_14b`, `grpo_phantom_1_3b`.

What a user brings, below runs/NAME/:

    model/          a model folder, as `troupe convert` writes it
    tasks.jsonl     {"prompt": "@anna waves to @bob", "subjects": {"anna": "anna.jpg", …}} a line
    scorers/        models/NAME/*.onnx (insightface), clip/ (with aesthetic.safetensors)

Where a paper states a number it stands here; where none does, ours does, with its reason
(docs/decisions.md). None of the three has run on a card.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image

from engine.errors import SpecError
from engine.flow import Noise
from engine.pipeline import Engine
from engine.presets import PHANTOM_1_3B, WAN_1_3B
from engine.runtime import Runtime
from engine.spec import Guidance, Reference, Spec
from training import dist
from training.grpo_config import GrpoConfig
from training.grpo_run import GrpoRun, learn
from training.loop import LoopConfig, Outcome
from training.policy import Task
from training.rewards.composite import Composite
from training.rewards.door import Reward
from training.rewards.photo import ArcFace, Clip, Photo
from training.rollout import RolloutConfig

# Identity-GRPO's rollouts: small and short, so that an update can afford 128 of them.
WIDTH, HEIGHT, FRAMES = 416, 240, 33


@dataclass(frozen=True)
class WanGrpo:
    """run: its numbers. width, height, num_frames: of rollouts. dtype: of the weights that are not
    trained."""

    run: GrpoRun
    composite: Composite = field(default_factory=Composite)
    width: int = WIDTH
    height: int = HEIGHT
    num_frames: int = FRAMES
    dtype: str = "bf16"
    num_processes: int = 8

    @property
    def folder(self) -> Path:
        return Path("runs") / self.run.config.loop.name


def _loop(name: str, steps: int, lr: float, betas: tuple[float, float], ema: float) -> LoopConfig:
    return LoopConfig(
        name, steps=steps, lr=lr, muon_lr=None, betas=betas, weight_decay=1e-4, warmup=10,
        schedule="constant", ema=ema, grad_clip=1.0, device="cuda", sheet_every=0, log_every=1,
    )  # fmt: skip


def crafter(name: str, lr: float) -> WanGrpo:
    """ID-Crafter, Table S.6 and A.2: AdamW (.9, .95), 32 videos an update, gradient norm 1, 800
    updates, noise of level 1. Not stated: groups (here 4 of 8), steps (25, Identity-GRPO's), which
    of them are noisy (a window of 4, MixGRPO's), KL (none).

    lr: the paper's is 1e-5; of adapters ten times as much (Identity-GRPO's code, Flow-Factory)."""
    rollout = RolloutConfig(
        25, WAN_1_3B.defaults.shift, Noise("id_crafter", 1.0), window=4, reach=12,
        same_noise=True, branch=True,
    )  # fmt: skip
    config = GrpoConfig(
        _loop(name, 800, lr, (0.9, 0.95), 0.99), rollout, group_size=8, groups=8, rows=1, keep=4
    )
    return WanGrpo(GrpoRun(config, guidance=Guidance.assumed(WAN_1_3B)))


def grpo_1_3b() -> WanGrpo:
    """Wan 1.3B with the identity stream, all weights, at the paper's rate."""
    asked = crafter("grpo_1_3b", 1e-5)
    return replace(asked, run=replace(asked.run, rank=0), dtype="fp32")


def grpo_14b() -> WanGrpo:
    """Wan 14B with the identity stream, adapters: optimizer and average of all weights do not fit
    beside them on a card. (Over the cards in slices they do: `GrpoRun(rank=0, fsdp=True)`.)"""
    return crafter("grpo_14b", 1e-4)


def grpo_phantom_1_3b() -> WanGrpo:
    """Identity-GRPO, section 4: 16 groups of 8 from different noise, 25 steps, noise t, clip range
    1e-3 (at 224,640 elements: .5), rank and alpha 32. From its code: rate 1e-4, AdamW (.9, .999),
    KL .004, two updates an epoch, average .9 every eight updates (.987 each), all steps but the
    last. Its reward model is not published: fidelity alone stands in its place."""
    rollout = RolloutConfig(25, PHANTOM_1_3B.defaults.shift, Noise("identity_grpo", 1.0))
    config = GrpoConfig(
        _loop("grpo_phantom_1_3b", 800, 1e-4, (0.9, 0.999), 0.987), rollout, group_size=8,
        groups=16, updates=2, rows=1, clip=0.5, beta=0.004,
    )  # fmt: skip
    run = GrpoRun(config, guidance=Guidance.assumed(PHANTOM_1_3B))
    return WanGrpo(run, Composite(fidelity=1.0))


def read_tasks(path: Path, engine: Engine, asked: WanGrpo) -> list[Task]:
    """The requests of a tasks.jsonl, encoded; pictures are relative to it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a task; the message names it.
    """
    size = {"width": asked.width, "height": asked.height, "num_frames": asked.num_frames}
    made = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            told = json.loads(line)
            subjects = dict(told["subjects"])
            cast = [
                Reference.from_image(name, Image.open(path.parent / file))
                for name, file in subjects.items()
            ]
            spec = Spec.of(engine.preset, told["prompt"], tuple(subjects), **size)
            made.append(Task.of(spec, cast, engine.encoder))
        except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return made


def scorers(folder: Path, engine: Engine, composite: Composite) -> Photo:
    """Everything that the reward needs, or an error that says what is missing.

    Raises:
        RewardError: see `training.rewards.photo`.
    """
    packs = sorted((folder / "models").glob("*/*.onnx"))
    pack = packs[0].parent if packs else folder / "models" / "buffalo_l"
    clip = Clip.load(folder / "clip")
    return Photo(ArcFace(pack), clip, engine.encoders.vlm, composite)


def train(
    asked: WanGrpo, engine: Engine, reward: Reward, folder: Path, own: Path | None = None
) -> Outcome:
    """One process's part, from folder/tasks.jsonl. own: where results belong, if not there."""
    tasks = read_tasks(folder / "tasks.jsonl", engine, asked)
    return learn(asked.run, engine, reward, tasks, own or folder)


def _train(asked: WanGrpo) -> None:
    runtime = Runtime(device="cuda", dtype=asked.dtype)
    engine = Engine.load(asked.folder / "model", runtime=runtime)
    reward = scorers(asked.folder / "scorers", engine, asked.composite)
    train(asked, engine, reward, asked.folder)


def run(asked: WanGrpo) -> None:
    """The recipe, on `num_processes` cards.

    Raises:
        FileNotFoundError: the model or the tasks are missing; says where they belong.
    """
    for path in (asked.folder / "model" / "manifest.json", asked.folder / "tasks.jsonl"):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this recipe learns from your own requests")
    dist.launch(partial(_train, asked), asked.num_processes, dist.ON_CARDS)


def run_1_3b() -> None:
    """Recipe `grpo_1_3b`."""
    run(grpo_1_3b())


def run_14b() -> None:
    """Recipe `grpo_14b`."""
    run(grpo_14b())


def run_phantom_1_3b() -> None:
    """Recipe `grpo_phantom_1_3b`."""
    run(grpo_phantom_1_3b())
