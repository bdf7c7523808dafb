"""A flow in the plane: four modes at (±2, ±2), an MLP that has learned their velocity, and a policy
over it. Small enough that a whole reinforcement run takes seconds.

Legend: B rows, P prompts (one-hot; the model knows two, which say the same before reinforcement).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import flow
from engine.flow import Noise
from engine.sample import Conditions, Solve, Step, guide, sample
from engine.spec import Guidance
from training.grpo_config import GrpoConfig
from training.loop import LoopConfig
from training.rewards.door import TOTAL
from training.rollout import At, RolloutConfig

MODES = torch.tensor([[2.0, 2.0], [-2.0, 2.0], [-2.0, -2.0], [2.0, -2.0]])
SPREAD = 0.2  # standard deviation of a mode
OFF = Guidance(scale=1.0)


class Plane(nn.Module):
    """v(x, t, prompt)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(7, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2)
        )

    def forward(self, x_B2: Tensor, t_B: Tensor, prompt_BP: Tensor) -> Tensor:
        t_B1 = t_B.to(x_B2.dtype)[:, None]
        waves = torch.cat([t_B1, (3 * t_B1).sin(), (6 * t_B1).cos()], dim=1)
        return self.layers(torch.cat([x_B2, waves, prompt_BP], dim=1))


def true_velocity(x_B2: Tensor, t_B: Tensor) -> Tensor:
    """E[eps - x0 | x_t] of the four modes, in closed form."""
    t_B1, a_B1 = t_B[:, None], 1 - t_B[:, None]
    spread_B1 = (a_B1 * SPREAD) ** 2 + t_B1**2
    way_BM2 = x_B2[:, None] - a_B1[:, :, None] * MODES
    weight_BM = (-0.5 * way_BM2.square().sum(-1) / spread_B1).softmax(1)
    x0_BM2 = MODES + (a_B1 * SPREAD**2 / spread_B1)[:, :, None] * way_BM2
    x0_B2 = (weight_BM[:, :, None] * x0_BM2).sum(1)
    return (x_B2 - x0_B2) / t_B1


@cache
def _learned() -> dict[str, Tensor]:
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model = Plane()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(1200):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / 1200)
            t_B = torch.rand(512).clamp(0.01, 1)
            x0 = MODES[torch.randint(4, (512,))] + SPREAD * torch.randn(512, 2)
            x_B2 = flow.add_noise(x0, torch.randn(512, 2), t_B)
            prompt_BP = torch.eye(2)[torch.randint(2, (512,))]
            loss = (model(x_B2, t_B, prompt_BP) - true_velocity(x_B2, t_B)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.state_dict()


def plane() -> Plane:
    """The model before reinforcement."""
    model = Plane()
    model.load_state_dict(_learned())
    return model


class PlanePolicy:
    """A sample is the number of its prompt. guidance: against the other prompt."""

    shape: tuple[int, ...] = (2,)

    def __init__(self, guidance: Guidance = OFF) -> None:
        self.guidance = guidance

    def conditions(self, samples: Sequence[int]) -> Any:
        rows = torch.eye(2)[[int(s) for s in samples]]
        return Conditions(rows, rows.flip(1))  # type: ignore[arg-type]

    def sample(
        self, model: nn.Module, samples: Sequence[int], seeds: Sequence[int],
        plan: flow.Schedule, solve: Solve, resume: Step | None = None,
    ) -> Tensor:  # fmt: skip
        noise = torch.stack(
            [torch.randn(self.shape, generator=torch.Generator().manual_seed(n)) for n in seeds]
        )
        given = self.conditions(samples)
        return sample(model, noise, given, plan, self.guidance, resume=resume, solve=solve)

    def velocity(self, model: nn.Module, samples: Sequence[int]) -> At:
        given = self.conditions(samples)
        return lambda x, t: guide(model, x, t, given, self.guidance)

    def frames(self, model: nn.Module, latents: Tensor) -> Tensor:
        return latents

    def leading(self, samples: Sequence[int]) -> int:
        return 0


def towards(places: Sequence[int]) -> Callable[[Tensor, Sequence[int]], dict[str, Tensor]]:
    """Reward: minus the distance to the mode places[prompt]."""

    def reward(x_B2: Tensor, samples: Sequence[int]) -> dict[str, Tensor]:
        goal_B2 = MODES[[places[int(s)] for s in samples]]
        return {TOTAL: -(x_B2 - goal_B2).norm(dim=1)}

    return reward


@torch.no_grad()
def drawn(model: nn.Module, prompt: int = 0, num: int = 2000, steps: int = 10) -> Tensor:
    """Samples by the ODE, all from one fixed noise."""
    noise = torch.randn(num, 2, generator=torch.Generator().manual_seed(99))
    given = PlanePolicy().conditions([prompt] * num)
    return sample(model, noise, given, flow.schedule("euler", steps, 1.0), OFF)


def score(model: nn.Module, prompt: int = 0, place: int = 0) -> tuple[float, float]:
    """(mean reward, share of samples within 1 of the mode) by the ODE."""
    way_B = (drawn(model, prompt) - MODES[place]).norm(dim=1)
    return -float(way_B.mean()), float((way_B < 1).double().mean())


LOOP = LoopConfig(
    "plane", steps=50, lr=1e-3, muon_lr=None, betas=(0.9, 0.999), warmup=1, schedule="constant",
    # No line in the log, no curves: drawing them takes as long as learning.
    ema=0.9, bf16=False, sheet_every=0, log_every=1000,
)  # fmt: skip


def plane_config(**changes: Any) -> GrpoConfig:
    """25 epochs of 2 updates with 8 groups of 16 each, 5 of 9 noisy steps trained, eps = .2."""
    loop = changes.pop("loop", LOOP)
    rollout = changes.pop("rollout", RolloutConfig(10, noise=Noise("exact", 0.7)))
    given = {"group_size": 16, "groups": 8, "updates": 2, "rows": 128, "train_steps": 5}
    return GrpoConfig(loop, rollout, **(given | {"clip": 0.2 * 2**0.5} | changes))


def learn(folder: Path, model: nn.Module | None = None, **changes: Any) -> nn.Module:
    """A whole run towards mode 0; `reward`, `samples` and `policy` may be others."""
    from training.grpo import train

    reward, samples = changes.pop("reward", towards([0, 0])), changes.pop("samples", [0])
    policy, model = changes.pop("policy", PlanePolicy()), model or plane()
    train(plane_config(**changes), policy, reward, samples, model, folder)
    return model
