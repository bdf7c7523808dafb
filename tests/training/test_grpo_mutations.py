"""The mutation table: faults that public implementations have, planted one by one. Each must be
caught by a check that the true tests pass; "the reward goes up" would not catch them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from engine import flow
from engine.flow import Kernel, Noise
from tests.training import grpo_checks as checks
from tests.training import toy_dit
from training import advantages as advantages_
from training import grpo, grpo_epochs, grpo_loss, policy, reference, rollout
from training.advantages import Advantages


@contextmanager
def put(module: Any, name: str, fault: Any) -> Iterator[None]:
    with patch.object(module, name, fault):
        yield


# --- the step ------------------------------------------------------------------------------------


def wrong_drift_sign() -> Any:
    """The score pushes away from the data: equation 4 read with a positive step."""

    def kernel(noise: Noise, t: float, t_next: float) -> Kernel:
        std = flow.noise_std(noise, t, t_next)
        pull = std**2 / (2 * t)
        return Kernel(1 + pull, t_next - t + pull * (1 - t), std)

    return put(flow, "kernel", kernel)


def dropped_score() -> Any:
    """Noise on top of the ODE, and nothing that takes it back."""

    def kernel(noise: Noise, t: float, t_next: float) -> Kernel:
        return Kernel(1.0, t_next - t, flow.noise_std(noise, t, t_next))

    return put(flow, "kernel", kernel)


def guard_at_exactly_one() -> Any:
    """Flow-GRPO's: 1 - t becomes 1 - t_next where t == 1, and only there."""

    def noise_std(noise: Noise, t: float, t_next: float) -> float:
        left = 1 - t_next if t == 1 else 1 - t
        return noise.level * math.sqrt(t * (t - t_next) / left) if t_next else 0.0

    return put(flow, "noise_std", noise_std)


def noisy_last_step() -> Any:
    """The bound is gone, so the last step draws like any other."""

    def noise_std(noise: Noise, t: float, t_next: float) -> float:
        return math.sqrt(min(flow._variance(noise, t, t_next), 0.49))

    return put(flow, "noise_std", noise_std)


def constant_cps() -> Any:
    """CPS as published: the noise of a step does not shrink with the step."""

    def noise_std(noise: Noise, t: float, t_next: float) -> float:
        return t_next * math.sin(0.35 * math.pi)

    return put(flow, "noise_std", noise_std)


def gradient_through_the_sample() -> Any:
    """x_next keeps its gradient, and the log-probability's cancels out."""
    true = flow.sde_step

    def sde_step(x: Tensor, v: Tensor, t: float, t_next: float, noise: Noise, **rest: Any) -> Any:
        made = true(x, v, t, t_next, noise, **rest)
        x_next = made.mean + (made.x_next - made.mean.detach())
        return made._replace(
            x_next=x_next, log_prob_B=flow.log_prob(x_next, made.mean, made.std)
        )

    return put(flow, "sde_step", sde_step)


def density_without_its_spread() -> Any:
    """-(x' - m)^2, as published beside CPS: no log-density at all."""
    return put(
        flow, "log_prob", lambda x, mean, std: -(x - mean).double().flatten(1).square().mean(1)
    )


# --- recording and replaying ---------------------------------------------------------------------


def off_by_one_replay() -> Any:
    """The model is told the time of the next step."""
    true = rollout.replay

    def replay(at: Any, trajectory: Any, k: int, device: str = "cpu") -> Any:
        door = trajectory.plan.door.roll(-1)
        return true(at, trajectory._replace(plan=trajectory.plan._replace(door=door)), k, device)

    return put(grpo, "replay", replay)


def half_precision_trajectory() -> Any:
    """States are kept in bf16 and come back as fp32."""
    true = rollout.Recorder.trajectory

    def trajectory(self: Any, plan: flow.Schedule) -> Any:
        made = true(self, plan)
        return made._replace(states_KBX=made.states_KBX.bfloat16().float())

    return put(rollout.Recorder, "trajectory", trajectory)


def guidance_only_in_rollouts() -> Any:
    """Replays score the velocity of the prompt alone."""
    true = policy.guide
    return put(policy, "guide", lambda *rest: true(*rest[:4], toy_dit.OFF, *rest[5:]))


def dropped_frames_count() -> Any:
    """The log-probability is over VACE's reference frames too."""
    true = flow.sde_step
    return put(flow, "sde_step", lambda *args, **rest: true(*args, **rest | {"leading": 0}))


def credit_of_the_frame_before() -> Any:
    """Each latent frame is told what the one before it is worth."""
    true = grpo_epochs.judged_by_frame

    def judged_by_frame(*given: Any) -> dict[str, Tensor]:
        return {name: value.roll(1, 1) for name, value in true(*given).items()}

    return put(grpo_epochs, "judged_by_frame", judged_by_frame)


def a_window_for_each() -> Any:
    """Where noise is drawn is decided at every call, as servers do it for each request."""
    count = iter(range(10**6))

    def window(config: Any, *parts: Any) -> range:
        first = next(count) % (config.last - config.window + 1)
        return range(first, first + config.window)

    return put(rollout, "window", window)


# --- advantages and loss -------------------------------------------------------------------------


def changed_advantages(change: Callable[[Advantages, Tensor], Tensor]) -> Any:
    true = advantages_.advantages

    def advantages(reward_B: Tensor, group_B: Tensor, spread: str = "group") -> Advantages:
        found = true(reward_B, group_B, spread)
        return found._replace(value_B=change(found, reward_B.double()))

    return put(advantages_, "advantages", advantages)


def shuffled_advantages() -> Any:
    return changed_advantages(lambda found, reward_B: found.value_B.roll(1))


def uncentred_advantages() -> Any:
    return changed_advantages(lambda found, reward_B: reward_B / reward_B.std())


def flipped_advantages() -> Any:
    return changed_advantages(lambda found, reward_B: -found.value_B)


def groups_by_text() -> Any:
    """Who has the same prompt is one group, whatever the pictures are."""
    true = grpo_epochs.advantages

    def advantages(reward_B: Tensor, group_B: Tensor, spread: str = "group") -> Advantages:
        return true(reward_B, torch.zeros_like(group_B), spread)

    return put(grpo_epochs, "advantages", advantages)


def kl_without_the_steps_length() -> Any:
    """|difference|^2 / (2 g^2), where the law's variance is g^2 |dt|; here |dt| = .1."""
    true = grpo_loss.gaussian_kl
    return put(grpo_loss, "gaussian_kl", lambda a, b, std: true(a, b, std / math.sqrt(0.1)))


def reference_below_the_adapters() -> Any:
    """The KL is to the base model, though the run began with adapters that had learned."""
    true = reference.Reference.__init__

    def init(self: Any, model: Any) -> None:
        true(self, model)
        self.kept = {name: torch.zeros_like(p) for name, p in self.kept.items()}

    return put(reference.Reference, "__init__", init)


TABLE: list[tuple[Callable[[], Any], Callable[[], None]]] = [
    (wrong_drift_sign, checks.check_algebra),
    (wrong_drift_sign, checks.check_marginals),
    (dropped_score, checks.check_algebra),
    (dropped_score, checks.check_marginals),
    (constant_cps, checks.check_exact_marginals),
    (guard_at_exactly_one, checks.check_bounds),
    (noisy_last_step, checks.check_last_step),
    (noisy_last_step, checks.check_bounds),
    (density_without_its_spread, checks.check_density),
    (gradient_through_the_sample, checks.check_no_gradient_through_the_sample),
    (off_by_one_replay, checks.check_ratio_is_one),
    (off_by_one_replay, checks.check_ratio_is_one_on_the_plane),
    (half_precision_trajectory, checks.check_ratio_is_one_on_the_plane),
    (half_precision_trajectory, checks.check_ratio_is_one),
    (guidance_only_in_rollouts, checks.check_ratio_is_one_under_guidance),
    (dropped_frames_count, checks.check_dropped_frames_do_not_count),
    (a_window_for_each, checks.check_window_is_shared),
    (shuffled_advantages, checks.check_advantages),
    (uncentred_advantages, checks.check_advantages),
    (flipped_advantages, checks.check_advantages),
    (groups_by_text, checks.check_groups_go_by_the_sample),
    (credit_of_the_frame_before, checks.check_by_frame_points_where_by_video_points),
    (kl_without_the_steps_length, checks.check_kl),
    (reference_below_the_adapters, checks.check_kl_starts_at_zero),
]


@pytest.mark.parametrize(
    ("fault", "check"), TABLE, ids=[f"{fault.__name__}-{check.__name__}" for fault, check in TABLE]
)
def test_a_planted_fault_is_caught(
    fault: Callable[[], Any], check: Callable[[], None]
) -> None:
    with fault(), pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize("fault", checks.PROCESS_FAULTS)
def test_a_planted_fault_between_processes_is_caught(fault: Callable[[], Any]) -> None:
    with pytest.raises(AssertionError):
        checks.check_two_processes_are_one(fault.__name__)
