"""What the parts of reinforcement must satisfy, as functions without arguments: the tests call them
as things are, the mutation table (test_grpo_mutations) calls them with a fault planted."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine import flow
from engine.flow import Noise
from engine.spec import Guidance
from tests.engine import sde_checks
from tests.training import toy_dit, toy_film, toy_flow
from training import advantages as advantages_
from training import dist, grpo, grpo_epochs, grpo_loss, loop, rollout
from training.grpo_config import GrpoConfig
from training.grpo_epochs import Part, Rollouts
from training.reference import Reference
from training.rewards.door import TOTAL
from training.rollout import Policy, RolloutConfig

PRINTED, EXACT = Noise("id_crafter", 0.7), Noise("exact", 0.7)


# --- the step, demands 1 to 10: see tests/engine/sde_checks --------------------------------------


def check_algebra() -> None:
    sde_checks.check_algebra(flow.sde_step, PRINTED)


def check_marginals() -> None:
    sde_checks.check_marginals(flow.sde_step, Noise("identity_grpo", 1.0))


def check_exact_marginals() -> None:
    sde_checks.check_marginals(flow.sde_step, EXACT)


def check_bounds() -> None:
    sde_checks.check_bounds(flow.sde_step, PRINTED)


def check_last_step() -> None:
    sde_checks.check_last_step(flow.sde_step, PRINTED)


def check_density() -> None:
    sde_checks.check_density(flow.sde_step, EXACT)


def check_no_gradient_through_the_sample() -> None:
    sde_checks.check_no_gradient_through_the_sample(flow.sde_step, EXACT)


# --- replay, demands 12 and 19 -------------------------------------------------------------------


def first_parts(
    config: GrpoConfig, policy: Policy, model: nn.Module, reward: Any, samples: Sequence[Any]
) -> list[tuple[Part, dict[str, Tensor]]]:
    """All parts of the first update with what the objective says of them, no step being made."""
    with tempfile.TemporaryDirectory() as folder:
        rollouts = Rollouts(config, policy, reward, samples, model, Path(folder))
        parts = [rollouts.batch(index) for index in range(config.for_loop(1).accumulate)]
    objective = grpo.Objective(config, policy, Reference(model))
    with torch.enable_grad():
        return [(part, objective(model, part)) for part in parts]


def dit_parts(
    guidance: Guidance = toy_dit.OFF, family: str = "identity", **changes: Any
) -> list[tuple[Part, dict[str, Tensor]]]:
    return first_parts(
        toy_dit.config(**changes), toy_dit.policy(family, guidance), toy_dit.model(family),
        toy_dit.brightness, toy_dit.tasks(family),
    )  # fmt: skip


def check_ratio_is_one(tolerance: float = 1e-6, **changes: Any) -> None:
    """12: before any update the replayed step is the recorded one, for every trained step."""
    told = dit_parts(**changes)
    assert {part.place for part, _ in told} == {0, 1, 2}
    for part, values in told:
        assert float(values["ratio_off"]) <= tolerance, (part.place, values["ratio_off"])


def check_ratio_is_one_on_the_plane() -> None:
    config = toy_flow.plane_config(train_steps=0)
    told = first_parts(
        config, toy_flow.PlanePolicy(), toy_flow.plane(), toy_flow.towards([0]), [0]
    )
    assert max(float(values["ratio_off"]) for _, values in told) <= 1e-6


def check_ratio_is_one_under_guidance() -> None:
    """19, with two forwards."""
    check_ratio_is_one(guidance=toy_dit.ON)


# --- the loss, demands 13 and 15 -----------------------------------------------------------------


def check_kl() -> None:
    """15: torch's divergence of the two laws that the sampler draws from, whatever the shape."""
    x, v, other = (sde_checks.normals(2, 3, 4, 2, 2, seed=seed) for seed in range(3))
    for noise in (EXACT, PRINTED):
        made, reference = (flow.sde_step(x, each, 0.6, 0.5, noise, x) for each in (v, other))
        laws = [torch.distributions.Normal(one.mean, one.std) for one in (made, reference)]
        want_B = torch.distributions.kl_divergence(*laws).flatten(1).mean(1)
        for change in (lambda y: y, lambda y: y.flatten(2), lambda y: y.flatten(1)):
            got_B = grpo_loss.gaussian_kl(change(made.mean), change(reference.mean), made.std)
            torch.testing.assert_close(got_B, want_B)


def check_kl_starts_at_zero() -> None:
    """15: the reference is the policy that the run began with, here a LoRA that has learned."""
    model = toy_dit.model()
    learned = [p for n, p in model.named_parameters() if "lora_B" in n]
    with torch.no_grad():
        for parameter in learned:
            parameter.normal_(std=0.1)
    config, policy = toy_dit.config(beta=1.0), toy_dit.policy()
    told = first_parts(config, policy, model, toy_dit.brightness, toy_dit.tasks())
    # Kernels with and without gradients may round differently; 1e-4 off in the mean would be 1e-8.
    assert all(float(values["kl"]) < 1e-12 for _, values in told), told[0][1]["kl"]


# --- advantages and groups, demands 16 and 17 ----------------------------------------------------

REWARDS = torch.tensor([1.0, 2.0, 3.0, 6.0, 5.0, 5.0, 5.0, 5.0, -1.0, 1.0, -1.0, 1.0])
GROUPS = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 9, 9, 9, 9])


def check_advantages() -> None:
    """16: hand numbers. Of 1 2 3 6 the mean is 3 and the variance 3.5; 5 5 5 5 say nothing."""
    found = advantages_.advantages(REWARDS, GROUPS)
    root = 3.5**0.5
    want = [-2 / root, -1 / root, 0, 3 / root, 0, 0, 0, 0, -1, 1, -1, 1]
    torch.testing.assert_close(found.value_B, torch.tensor(want, dtype=torch.float64))
    assert found.live_B.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    for group in (7, 2, 9):
        assert abs(float(found.value_B[GROUPS == group].sum())) < 1e-12


def check_groups_go_by_the_sample() -> None:
    """16: samples of the same words and other pictures are groups of their own: centred apart."""
    samples = toy_dit.tasks()
    assert len({task.spec.prompt for task in samples}) == 1

    def level(frames: Tensor, asked: Sequence[Any]) -> dict[str, Tensor]:
        base = toy_dit.brightness(frames, asked)[TOTAL]
        return {TOTAL: base + torch.tensor([10.0 * samples.index(task) for task in asked])}

    config = toy_dit.config(updates=1, group_size=2, groups=2)
    (part, _), *_ = first_parts(config, toy_dit.policy(), toy_dit.model(), level, samples)
    assert part.samples[0] is part.samples[1] and part.samples[2] is part.samples[3]
    for group in (part.value_B[:2], part.value_B[2:]):
        assert abs(float(group.sum())) < 1e-9 and float(group.abs().sum()) > 1


# --- credit by frame -----------------------------------------------------------------------------


def film_config(by_frame: bool, **changes: Any) -> GrpoConfig:
    rollout = RolloutConfig(4, noise=EXACT, by_frame=by_frame)
    given = {"groups": 4, "group_size": 8, "rows": 32, "updates": 1, "train_steps": 0} | changes
    return toy_flow.plane_config(rollout=rollout, **given)


def film(folder: Path, by_frame: bool, **changes: Any) -> Rollouts:
    """Rollouts of a film whose frames know nothing of each other."""
    reward = changes.pop("reward", toy_film.near)
    config = film_config(by_frame, **changes)
    return Rollouts(config, toy_film.FilmPolicy(), reward, [0], toy_film.Film(), folder)


def slopes(found: Rollouts, number: int) -> Tensor:
    """The gradient of an update, flat."""
    objective = grpo.Objective(found.config, found.policy, Reference(found.model))
    each = found.config.for_loop(1).accumulate
    found.model.zero_grad()
    with torch.enable_grad():
        for index in range(number * each, (number + 1) * each):
            objective(found.model, found.batch(index))["loss"].backward()
    return torch.cat([p.grad.flatten() for p in found.model.parameters()])


def check_by_frame_points_where_by_video_points() -> None:
    """Frames of the film know nothing of each other, so that what one's noise says of another's
    reward is chance: without it the direction is the same, and an update's gradient wavers less."""
    mean, wavers = {}, {}
    for by_frame in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            found = film(Path(folder), by_frame, groups=8)
            drawn = torch.stack([slopes(found, number) for number in range(60)])
        halves = drawn[:30].mean(0), drawn[30:].mean(0)
        mean[by_frame] = drawn.mean(0)
        wavers[by_frame] = 1 / float(torch.cosine_similarity(*halves, dim=0)) - 1
    assert float(torch.cosine_similarity(mean[True], mean[False], dim=0)) > 0.8
    assert 0 <= wavers[True] < 0.6 * wavers[False], wavers


# --- processes, demand 20 ------------------------------------------------------------------------


@contextmanager
def gradients_of_each_its_own() -> Iterator[None]:
    """Nobody averages them: as many policies as processes."""
    with patch.object(loop, "_same_gradients", lambda run, parameters, values: None):
        yield


@contextmanager
def the_same_groups_everywhere() -> Iterator[None]:
    """Every process plays what the first one plays."""
    true = grpo_epochs.Rollouts.members
    with patch.object(grpo_epochs.Rollouts, "members", lambda self, n, rank: true(self, n, 0)):
        yield


PROCESS_FAULTS = (gradients_of_each_its_own, the_same_groups_everywhere)


def plane_runs(folder: Path) -> None:
    """A process's part of runs on the plane, as things are and with each fault; leaves weights."""
    group = dist.current()
    run = replace(toy_flow.LOOP, steps=3)
    given = {"loop": run, "groups": 4, "group_size": 4, "rows": 4, "spread": "global"}
    grpo.train(
        film_config(True, **given), toy_film.FilmPolicy(), toy_film.near, [0, 1],
        made := toy_film.Film(), inside := folder / f"{group.size}_film",
    )  # fmt: skip
    torch.save(made.state_dict(), inside / f"{group.rank}.pt")
    config = toy_flow.plane_config(**given)
    for fault in (nullcontext, *PROCESS_FAULTS) if group.size > 1 else (nullcontext,):
        torch.manual_seed(0)
        model, goals = toy_flow.Plane(), toy_flow.towards([0, 2])
        inside = folder / f"{group.size}_{fault.__name__}"
        with fault():
            grpo.train(config, toy_flow.PlanePolicy(), goals, [0, 1], model, inside)
        torch.save(model.state_dict(), inside / f"{group.rank}.pt")


@cache
def left_by_processes() -> dict[str, list[dict[str, Tensor]]]:
    """By name of the fault ("" is none) the weights that each of two processes left; under "alone"
    those of one process; film and film_alone are runs with credit by frame."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plane_runs(folder)
        dist.launch(partial(plane_runs, folder), 2)
        found = {"alone": [torch.load(folder / "1_nullcontext" / "0.pt")]}
        found["film_alone"] = [torch.load(folder / "1_film" / "0.pt")]
        for name in ("film", *(fault.__name__ for fault in (nullcontext, *PROCESS_FAULTS))):
            found[name] = [torch.load(folder / f"2_{name}" / f"{rank}.pt") for rank in range(2)]
    return found


def check_two_processes_are_one(fault: str = "nullcontext", alone_: str = "alone") -> None:
    """20: two processes leave what one leaves, and the same in both."""
    alone, ranks = left_by_processes()[alone_][0], left_by_processes()[fault]
    for tensor, first, second in zip(alone.values(), *(r.values() for r in ranks), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, tensor, rtol=1e-5, atol=1e-6)


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state" / "train.safetensors")


# --- the sampler, demand 18 ----------------------------------------------------------------------


def check_dropped_frames_do_not_count() -> None:
    """18: other noise in the frames that VACE drops changes neither log-probability nor loss."""
    (part, before), *_ = dit_parts(family="vace")
    assert part.trajectory.leading == 2
    states = part.trajectory.states_KBX.clone()
    states[part.place + 1, :, :, :2] += 1
    changed = part._replace(trajectory=part.trajectory._replace(states_KBX=states))
    model = toy_dit.model("vace")
    config, policy = toy_dit.config(), toy_dit.policy("vace")
    after = grpo.Objective(config, policy, Reference(model))(model, changed)
    assert torch.equal(after["loss"], before["loss"]) and float(after["ratio_off"]) <= 1e-6


def check_window_is_shared() -> None:
    """17: all rollouts of an epoch have their noise at the same steps."""
    config = RolloutConfig(10, window=2)
    assert len({rollout.window(config, 0, 5) for _ in range(4)}) == 1
    assert len({rollout.window(config, 0, epoch).start for epoch in range(40)}) == 8
