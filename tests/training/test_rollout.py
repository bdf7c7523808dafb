"""Recording and replaying: demands 7, 12, 17 and 18 on reinforcement."""

from __future__ import annotations

from dataclasses import replace

import torch

from engine import flow
from engine.flow import Noise
from tests.training import grpo_checks as checks
from tests.training import toy_dit, toy_flow
from training.rollout import Member, RolloutConfig, Trajectory, play, replay, seed_of, window

POLICY = toy_flow.PlanePolicy()
CONFIG = RolloutConfig(8, shift=3.0, window=3)


def members(group: int = 0, num: int = 4) -> list[Member]:
    return [Member(0, group, number) for number in range(num)]


def made(config: RolloutConfig = CONFIG, steps: range = range(2, 5), seed: int = 0,
         group: int = 0, num: int = 4) -> tuple[torch.Tensor, Trajectory]:  # fmt: skip
    return play(POLICY, toy_flow.Plane(), members(group, num), config, steps, seed)


def setup_function() -> None:
    torch.manual_seed(0)


def test_a_trajectory_is_the_window_and_no_more() -> None:
    _, found = made()
    assert found.states_KBX.shape == (4, 4, 2) and found.states_KBX.dtype == torch.float32
    assert found.log_prob_KB.shape == (3, 4) and found.first == 2 and found.num_elements == 2
    assert torch.equal(found.rows(slice(1, 3)).states_KBX, found.states_KBX[:, 1:3])


def test_demand_07_replay_goes_by_the_saved_table() -> None:
    """Whatever steps are in use meanwhile: the trajectory knows its own times."""
    torch.manual_seed(0)
    model = toy_flow.Plane()
    _, found = play(POLICY, model, members(), CONFIG, range(2, 5), 0)
    assert (found.plan.times.diff() < 0).all() and found.plan.num_steps == 8
    at = POLICY.velocity(model, [0] * 4)
    for k in range(3):
        again = replay(at, found, k).log_prob_B
        torch.testing.assert_close(again, found.log_prob_KB[k], rtol=0, atol=1e-6)
    other = found._replace(plan=flow.schedule("euler", 50, 3.0))
    wrong = replay(at, other, 0).log_prob_B
    assert (wrong - found.log_prob_KB[0]).abs().min() > 1e-2


def test_demand_12_ratios_are_one_on_the_plane() -> None:
    checks.check_ratio_is_one_on_the_plane()


def test_demand_17_windows_are_shared_and_lie_inside() -> None:
    checks.check_window_is_shared()
    config = replace(CONFIG, window=2, reach=4)
    assert {window(config, 0, n) for n in range(50)} == {range(0, 2), range(1, 3), range(2, 4)}
    assert window(replace(CONFIG, window=0), 0, 0) == range(7)  # all but the last


def test_demand_17_noise_is_a_function_of_seed_group_and_member() -> None:
    """Not of the company: a group in two halves, as two machines play it, is the same group."""
    torch.manual_seed(0)
    model = toy_flow.Plane()
    whole, path = play(POLICY, model, members(5), CONFIG, range(2, 5), 1)
    for part in (slice(0, 2), slice(2, 4)):
        latents, half = play(POLICY, model, members(5)[part], CONFIG, range(2, 5), 1)
        torch.testing.assert_close(latents, whole[part], rtol=0, atol=1e-5)
        torch.testing.assert_close(half.states_KBX, path.states_KBX[:, part], rtol=0, atol=1e-5)
    assert len({seed_of(s, g, m) for s in range(3) for g in range(3) for m in range(3)}) == 27
    starts = whole.unique(dim=0)
    assert len(starts) == 4
    for group, seed in ((6, 1), (5, 2)):
        other, _ = play(POLICY, model, members(group), CONFIG, range(2, 5), seed)
        assert (other - whole).abs().max() > 1e-2


def test_demand_17_same_noise_by_switch() -> None:
    """Equal until the window opens, different after its first step."""
    config = replace(CONFIG, same_noise=True)
    _, found = made(config)
    before, after = found.states_KBX[0], found.states_KBX[1]
    torch.testing.assert_close(before, before[:1].expand(4, -1), rtol=0, atol=1e-6)
    assert len(after.unique(dim=0)) == 4
    assert len(made()[1].states_KBX[0].unique(dim=0)) == 4


def test_branches_are_what_they_would_be_alone() -> None:
    """The common stem is computed once for each group: same latents, fewer rows in a forward."""
    config = replace(CONFIG, same_noise=True)
    torch.manual_seed(0)
    model, rows = toy_flow.Plane(), []
    model.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    cast = [*members(0, 3), *members(1, 3)]
    whole, path = play(POLICY, model, cast, config, range(2, 5), 0)
    assert rows == [6] * 8
    rows.clear()
    latents, branched = play(POLICY, model, cast, replace(config, branch=True), range(2, 5), 0)
    assert rows == [2] * 2 + [6] * 6
    torch.testing.assert_close(latents, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(branched.states_KBX, path.states_KBX, rtol=0, atol=1e-5)


def test_demand_18_frames_that_are_dropped_do_not_count() -> None:
    checks.check_dropped_frames_do_not_count()


def test_demand_41_memory_is_as_computed() -> None:
    """One state more than steps, fp32. At 416 x 240 with 33 frames and two references in front,
    as Identity-GRPO trains VACE, a state is 16 x 11 x 30 x 52 numbers: 1.1 MB."""
    config = toy_dit.config(rollout={"noise": Noise()})
    with_state = play(
        toy_dit.policy("vace"), toy_dit.model("vace"),
        [Member(task, 0, n) for n, task in enumerate(toy_dit.tasks("vace")[:2])],
        config.rollout, range(3), 0,
    )[1].states_KBX  # fmt: skip
    assert with_state.nbytes == (3 + 1) * 2 * 16 * (2 + 2) * 8 * 12 * 4
    assert 16 * 11 * 30 * 52 * 4 / 1e6 == 1.09824
