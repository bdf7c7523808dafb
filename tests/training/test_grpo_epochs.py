"""Epochs of rollouts as batches: demands 16, 17 and 20 on reinforcement."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training import grpo_checks as checks
from tests.training import toy_film, toy_flow
from training import dist, grpo_epochs
from training.grpo import Objective
from training.grpo_epochs import Part, Rollouts
from training.reference import Reference
from training.rewards.door import TOTAL, RewardError
from training.rollout import replay


def rollouts(folder: Path, model: torch.nn.Module | None = None, **changes: Any) -> Rollouts:
    given = {"groups": 4, "group_size": 4, "rows": 4, "updates": 2} | changes
    reward = given.pop("reward", toy_flow.towards([0, 1, 2]))
    config = toy_flow.plane_config(**given)
    if model is None:
        torch.manual_seed(0)
        model = toy_flow.Plane()
    policy = toy_flow.PlanePolicy()
    return Rollouts(config, policy, reward, [0, 1, 0, 1, 1], model, folder)


def update(found: Rollouts, number: int = 0) -> list[Part]:
    each = found.config.for_loop(found.group.size).accumulate
    return [found.batch(index) for index in range(number * each, (number + 1) * each)]


def test_demand_16_groups_go_by_the_sample_and_not_by_its_text() -> None:
    checks.check_groups_go_by_the_sample()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_demand_17_every_group_is_whole_on_one_process_from_the_first(
    tmp_path: Path, size: int
) -> None:
    found = rollouts(tmp_path)
    played = []
    for rank in range(size):
        found.group = dist.Group(rank, size)
        mine = [m for epoch in range(3) for m in found.members(epoch, rank)]
        assert set(Counter(m.group for m in mine).values()) == {4}
        assert all(Counter((m.group, m.number) for m in mine)[key] == 1 for key in
                   {(m.group, m.number) for m in mine})  # fmt: skip
        played += mine
    assert {m.group for m in played} == set(range(3 * 2 * 4))
    # Each sample comes once before any comes again, and always the same for a group.
    sample_of = {m.group: m.sample for m in played}
    assert all({sample_of[5 * turn + n] for n in range(5)} == set(range(5)) for turn in range(4))


def test_an_epoch_is_played_once_and_trained_whole(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    parts = update(found, 0) + update(found, 1)
    assert {part.update for part in parts} == {0, 1}
    assert [part.moved for part in parts] == [part.update == 1 for part in parts]
    assert found.number == 0 and len(found.epoch.value_B) == 32
    for place in found.epoch.places_K:
        rows = [p.value_B for p in parts if p.place == int(place)]
        torch.testing.assert_close(torch.cat(rows), found.epoch.value_B)


def test_timesteps_are_subsampled_anew_for_each_epoch(tmp_path: Path) -> None:
    found = rollouts(tmp_path, train_steps=2)
    seen = [sorted({p.place for p in update(found, number)}) for number in (0, 1, 2, 4)]
    assert all(len(places) == 2 for places in seen)
    assert seen[0] == seen[1] and len({tuple(places) for places in seen}) > 1


def test_best_and_worst_of_each_group_are_trained(tmp_path: Path) -> None:
    whole, part = rollouts(tmp_path / "a"), rollouts(tmp_path / "b", keep=2, rows=2)
    update(whole)
    update(part)
    values = whole.epoch.value_B.unflatten(0, (-1, 4))
    kept = part.epoch.value_B.unflatten(0, (-1, 2))
    torch.testing.assert_close(kept.min(1).values, values.min(1).values)
    torch.testing.assert_close(kept.max(1).values, values.max(1).values)


def test_an_epoch_on_disk_is_the_epoch(tmp_path: Path) -> None:
    found = rollouts(tmp_path)
    update(found)
    again = grpo_epochs.load(found.file(0))
    mine = found.epoch
    assert torch.equal(again.trajectory.states_KBX, mine.trajectory.states_KBX)
    assert torch.equal(again.trajectory.plan.times, mine.trajectory.plan.times)
    assert again.trajectory.noise == mine.trajectory.noise and again.told == mine.told
    for name in ("value_B", "weight_B", "sample_B", "places_K"):
        assert torch.equal(getattr(again, name), getattr(mine, name))
    assert torch.equal(again.trajectory.log_prob_KB, mine.trajectory.log_prob_KB)


def test_rollouts_of_other_numbers_are_not_taken_and_old_ones_go(tmp_path: Path) -> None:
    first = rollouts(tmp_path)
    update(first)
    other = rollouts(tmp_path, clip=0.7)
    other.model = None  # it would be asked if rollouts were played
    with pytest.raises(AttributeError):
        update(other)
    update(first, 2)
    assert [path.name for path in (tmp_path / "rollouts").iterdir()] == [first.file(1).name]


def test_a_scorer_that_fails_drops_its_groups_and_not_the_run(tmp_path: Path) -> None:
    true = toy_flow.towards([0, 1])
    calls = iter(range(100))

    def sometimes(frames: Tensor, samples: Any) -> dict[str, Tensor]:
        if next(calls) == 1:
            raise RewardError("no")
        return true(frames, samples)

    found = rollouts(tmp_path, reward=sometimes)
    parts = update(found)
    live = found.epoch.weight_B > 0
    assert live.tolist() == [True] * 4 + [False] * 4 + [True] * 24
    assert float(found.epoch.weight_B[:16].mean()) == pytest.approx(1)
    objective = Objective(found.config, found.policy, Reference(found.model))
    assert all(torch.isfinite(objective(found.model, part)["loss"]) for part in parts)
    assert 0 < found.epoch.told["live"] < 1 and found.epoch.told[TOTAL] < 0


@pytest.mark.parametrize("rows", [1, 2, 8, 16])
def test_demand_20_any_micro_batch_gives_the_gradient_of_one_big_batch(
    tmp_path: Path, rows: int
) -> None:
    def gradient(rows: int) -> list[Tensor]:
        torch.manual_seed(0)
        model = toy_flow.Plane()
        found = rollouts(tmp_path / str(rows), model, rows=rows, beta=0.1)
        reference = Reference(model)
        with torch.no_grad():  # else the KL's gradient is zero
            for kept in reference.kept.values():
                kept.add_(0.01)
        objective = Objective(found.config, found.policy, reference)
        parts = update(found)
        for part in parts:
            (objective(model, part)["loss"] / len(parts)).backward()
        return [p.grad for p in model.parameters()]

    for got, want in zip(gradient(rows), gradient(16), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_the_loss_at_ratio_one_is_minus_the_mean_advantage_times_its_gradient(
    tmp_path: Path,
) -> None:
    """13: against a gradient written by hand, over everything in the update."""
    torch.manual_seed(0)
    model = toy_flow.Plane()
    found = rollouts(tmp_path, model, rows=16, train_steps=0)
    objective = Objective(found.config, found.policy, Reference(model))
    parts = update(found)
    for part in parts:
        (objective(model, part)["loss"] / len(parts)).backward()
    got = [p.grad.clone() for p in model.parameters()]
    total = torch.zeros((), dtype=torch.float64)
    path, policy = found.epoch.trajectory.rows(slice(0, 16)), found.policy
    at = policy.velocity(model, [found.samples[int(n)] for n in found.epoch.sample_B[:16]])
    for k in range(9):
        total = total - (found.epoch.value_B[:16] * replay(at, path, k).log_prob_B).mean() / 9
    want = torch.autograd.grad(total, list(model.parameters()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_changed_numbers_of_the_loop_do_not_matter(tmp_path: Path) -> None:
    """How long a run shall be is no reason to play again."""
    found = rollouts(tmp_path)
    update(found)
    longer = rollouts(tmp_path, loop=replace(toy_flow.LOOP, steps=500))
    longer.model = None
    update(longer)


def test_by_frame_each_frame_is_compared_with_the_same_frame_of_its_group(tmp_path: Path) -> None:
    found = checks.film(tmp_path, True, updates=2, rows=8)
    update(found)
    value = found.epoch.value_B.unflatten(0, (8, 8))  # groups, members, frames
    assert value.shape[2] == toy_film.FRAMES
    torch.testing.assert_close(value.mean(1), torch.zeros(8, 4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(value.std(1, correction=0), torch.ones(8, 4).double())
    whole = checks.film(tmp_path / "video", False, updates=2, rows=8)
    update(whole)
    assert torch.equal(whole.epoch.trajectory.states_KBX, found.epoch.trajectory.states_KBX)
    again = grpo_epochs.load(found.file(0))
    assert again.trajectory.by_frame and again.trajectory.log_prob_KB.shape[2] == 4
    assert torch.equal(again.value_B, found.epoch.value_B)


def test_by_frame_equal_rewards_of_all_frames_are_the_reward_of_the_video(tmp_path: Path) -> None:
    """Before any update, where ratios are 1, both credits have the same gradient."""

    def of_the_first(frames: Tensor, samples: Any) -> dict[str, Tensor]:
        return {TOTAL: frames.flatten(1)[:, 0]}

    whole = checks.film(tmp_path / "video", False, reward=of_the_first)
    each = checks.film(tmp_path / "frame", True)
    each._open(0)
    whole._open(0)
    each.epoch = each.epoch._replace(
        value_B=whole.epoch.value_B[:, None].expand(-1, toy_film.FRAMES)
    )
    found, want = checks.slopes(each, 0), checks.slopes(whole, 0)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-7)


def test_by_frame_points_where_by_video_points_and_wavers_less() -> None:
    checks.check_by_frame_points_where_by_video_points()


def test_by_frame_a_scorer_that_fails_drops_its_groups(tmp_path: Path) -> None:
    calls = iter(range(100))

    def sometimes(frames: Tensor, samples: Any) -> dict[str, Tensor]:
        if next(calls) == 1:
            raise RewardError("no")
        return toy_film.near(frames, samples)

    found = checks.film(tmp_path, True, reward=sometimes, rows=8)
    update(found)
    live = (found.epoch.weight_B > 0).unflatten(0, (4, 8))
    assert live[1].logical_not().all() and live[[0, 2, 3]].all()
    assert float(found.epoch.weight_B.mean()) == pytest.approx(1)
