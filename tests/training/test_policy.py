"""The engine's sampler as a policy, on the shipped classes: demands 12, 18 and 19."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from engine import flow
from engine.encodings import stack
from engine.pipeline import Engine
from engine.spec import Guidance
from tests.training import grpo_checks as checks
from tests.training import toy_dit
from training.rollout import Member, play, replay


@pytest.fixture(autouse=True)
def _grad() -> Iterator[None]:
    with torch.enable_grad():
        yield


def test_demand_12_ratios_are_one_before_any_update() -> None:
    checks.check_ratio_is_one()


@pytest.mark.parametrize("rows", [1, 2])
def test_demand_12_with_any_number_of_rows_in_a_forward(rows: int) -> None:
    checks.check_ratio_is_one(rows=rows)


@pytest.mark.parametrize("family", ["phantom", "vace"])
def test_demand_12_in_the_other_families(family: str) -> None:
    checks.check_ratio_is_one(family=family)


@pytest.mark.parametrize("family", ["identity", "phantom", "vace"])
def test_demand_12_with_credit_by_frame(family: str) -> None:
    checks.check_ratio_is_one(family=family, rollout={"by_frame": True})


def test_demand_12_under_bf16() -> None:
    """Rollout and replay round alike; what is left is small and on both sides of 1."""
    loop = replace(toy_dit.LOOP, bf16=True)
    config = toy_dit.config(loop=loop, groups=4, rows=8, updates=1)
    model, policy = toy_dit.model(), toy_dit.policy()
    members = [Member(task, n, 0) for n, task in enumerate(toy_dit.tasks())]
    with torch.autocast("cpu", torch.bfloat16):
        _, found = play(policy, model, members, config.rollout, range(3), 0)
        at = policy.velocity(model, [member.sample for member in members])
        again = torch.stack([replay(at, found, k).log_prob_B for k in range(3)]).detach()
    off = again - found.log_prob_KB
    assert found.states_KBX.dtype == torch.float32
    assert float(off.mean().abs()) <= 1e-4 and float(off.abs().max()) <= 1e-3


def test_demand_12_with_gradient_checkpointing() -> None:
    """Blocks that are computed again in the backward: same ratios, and same gradients."""
    model, policy, task = toy_dit.model(), toy_dit.policy(), toy_dit.tasks()[0]
    members = [Member(task, 0, n) for n in range(2)]
    _, found = play(policy, model, members, toy_dit.config().rollout, range(3), 0)

    def gradients() -> list[torch.Tensor]:
        made = replay(policy.velocity(model, [task] * 2), found, 1)
        assert made.log_prob_B is not None
        assert (made.log_prob_B - found.log_prob_KB[1]).abs().max() <= 1e-6
        trained = [p for p in model.parameters() if p.requires_grad]
        return list(torch.autograd.grad(made.log_prob_B.sum(), trained))

    want = gradients()
    for block in model.blocks:
        forward = block.forward
        block.forward = lambda *a, f=forward: checkpoint(f, *a, use_reentrant=False)
    for got, expected in zip(gradients(), want, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_demand_12_on_a_card() -> None:
    loop = replace(toy_dit.LOOP, device="cuda")
    model, policy = toy_dit.model().to("cuda"), toy_dit.policy()
    members = [Member(toy_dit.tasks()[0], 0, n) for n in range(4)]
    _, found = play(policy, model, members, toy_dit.config(loop=loop).rollout, range(3), 0)
    at = policy.velocity(model, [m.sample for m in members])
    for k in range(3):
        again = replay(at, found, k, "cuda").log_prob_B
        assert again is not None
        assert (again.cpu() - found.log_prob_KB[k]).abs().max() <= 1e-6


@pytest.mark.parametrize("guidance", [toy_dit.OFF, toy_dit.ON, Guidance(mode="dual")], ids=str)
def test_demand_19_rollout_and_replay_have_one_velocity(guidance: Guidance) -> None:
    checks.check_ratio_is_one(guidance=guidance)


def test_demand_19_the_empty_forwards_learn_by_switch() -> None:
    """Detached, the gradient is that of guidance scale * full alone; with it both parts differ."""
    model, task = toy_dit.model(), toy_dit.tasks()[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    members = [Member(task, 0, n) for n in range(2)]
    found, grads = [], []
    for detach in (False, True):
        policy = toy_dit.policy(guidance=toy_dit.ON, detach=detach)
        _, path = play(policy, model, members, toy_dit.config().rollout, range(3), 0)
        made = replay(policy.velocity(model, [task] * 2), path, 0)
        assert made.log_prob_B is not None
        made.log_prob_B.sum().backward()
        found.append(made.mean.detach())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for parameter in model.parameters():
            parameter.grad = None
    torch.testing.assert_close(*found)
    assert any(not torch.allclose(a, b) for a, b in zip(*grads, strict=False))


def test_demand_19_only_adapters_get_gradients() -> None:
    model, policy, task = toy_dit.model(), toy_dit.policy(guidance=toy_dit.ON), toy_dit.tasks()[0]
    _, found = play(policy, model, [Member(task, 0, 0)], toy_dit.config().rollout, range(3), 0)
    made = replay(policy.velocity(model, [task]), found, 0)
    assert made.log_prob_B is not None
    made.log_prob_B.sum().backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched and all(".lora_" in name for name in touched)


def test_rollouts_are_what_the_engine_makes() -> None:
    """Without noise they are the service's own latents of the same seeds, bit for bit."""
    model, policy, task = toy_dit.model(), toy_dit.policy(guidance=toy_dit.ON), toy_dit.tasks()[0]
    plan = toy_dit.config().rollout.plan()
    engine = Engine(model, policy.encoders, policy.preset, "other")
    want = engine.sample(
        stack([task.encoded.full] * 2), stack([task.encoded.negative] * 2), [3, 4],
        (16, 2, 8, 12), plan, toy_dit.ON,
    )  # fmt: skip
    got = policy.sample(model, [task, task], [3, 4], plan, flow.step)
    assert torch.equal(got, want)
    assert torch.equal(policy.frames(model, got), engine.decode(want))


def test_a_reward_may_be_shown_the_beginning_alone() -> None:
    """What the first latent frames decode to does not hang on those behind them."""
    model, policy = toy_dit.model(), toy_dit.policy()
    engine = policy.engine(model)
    latents = torch.randn(2, *engine.preset.latent_shape(32, 32, 9))
    whole = policy.frames(model, latents)
    for decoded, shown in ((1, 1), (2, 5)):
        begun = replace(policy, decoded=decoded).frames(model, latents)
        assert begun.shape[1] == shown and torch.equal(begun, whole[:, :shown])
