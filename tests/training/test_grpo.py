"""Whole runs: demands 20 to 23 and 38 to 41 on reinforcement."""

from __future__ import annotations

from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from engine.dit import WanDiT
from engine.flow import Noise
from tests.training import grpo_checks as checks
from tests.training import toy_dit, toy_flow
from training import advantages as advantages_
from training import grpo_epochs, lora, sft
from training.grpo import train
from training.grpo_epochs import Rollouts
from training.report import read_log
from training.rewards.door import TOTAL
from training.rollout import RolloutConfig


@pytest.fixture(autouse=True)
def _grad() -> Any:
    with torch.enable_grad():
        yield


# --- learning ------------------------------------------------------------------------------------


def learned(seed: int = 0, **changes: Any) -> nn.Module:
    """What a run on the plane leaves."""
    loop = replace(toy_flow.LOOP, seed=seed)
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        return toy_flow.learn(Path(folder), **({"loop": loop} | changes))


@cache
def start() -> tuple[float, float]:
    return toy_flow.score(toy_flow.plane())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_demand_38_it_learns(seed: int) -> None:
    """Samples by the ODE that lie at the rewarded mode: .23 before, .60 and more after. Measured on
    this very run with a fault: .54 with the wrong drift, .49 with uncentred advantages."""
    reward, hits = toy_flow.score(learned(seed))
    assert start()[1] == pytest.approx(0.235, abs=0.03)
    assert hits >= 0.60 and reward > start()[0] + 1.5


def changed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    true = advantages_.advantages

    def advantages(reward_B: Tensor, group_B: Tensor, spread: str = "group") -> Any:
        found = true(reward_B, group_B, spread)
        return found._replace(value_B=change(found.value_B))

    monkeypatch.setattr(grpo_epochs, "advantages", advantages)


@pytest.mark.filterwarnings("ignore:none of the ratios")
@pytest.mark.parametrize(
    ("lr", "steps", "way"), [(3e-4, 120, 0.05), (1e-3, 50, 0.13)], ids=["slow", "matched"]
)
def test_demand_38_control_with_shuffled_advantages(
    monkeypatch: pytest.MonkeyPatch, lr: float, steps: int, way: float
) -> None:
    """Where the advantage is another rollout's nothing is learned. The optimizer walks at random
    all the same, at the rate of the run above as far as .12 to .27 (four shuffles)."""
    generator = torch.Generator().manual_seed(0)
    changed(monkeypatch, lambda value: value[torch.randperm(len(value), generator=generator)])
    loop = replace(toy_flow.LOOP, lr=lr, steps=steps)
    assert toy_flow.score(learned(loop=loop))[1] == pytest.approx(start()[1], abs=way)


def test_demand_38_control_with_flipped_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, lambda value: -value)
    assert toy_flow.score(learned())[1] < 0.12


def test_demand_39_each_prompt_learns_its_own() -> None:
    """Two prompts with neighbouring modes, of which one's rewards are ten higher: centred apart
    that is nothing. Both come 1.3 nearer to their own mode; in one group it would be .6."""
    towards = toy_flow.towards([0, 1])

    def reward(frames: Tensor, samples: Any) -> dict[str, Tensor]:
        return {TOTAL: towards(frames, samples)[TOTAL] + 10 * torch.tensor(samples)}

    model = learned(loop=replace(toy_flow.LOOP, steps=80), reward=reward, samples=[0, 1])
    for prompt in (0, 1):
        own, other = (toy_flow.score(model, prompt, place)[0] for place in (prompt, 1 - prompt))
        assert own > start()[0] + 1.0 and own > other + 0.1


def test_demand_40_the_kl_holds_the_policy() -> None:
    loop = replace(toy_flow.LOOP, steps=16)
    before = toy_flow.score(toy_flow.plane())[0]
    free, held = (toy_flow.score(learned(loop=loop, beta=beta))[0] for beta in (0.0, 300.0))
    assert abs(held - before) < 0.05 * abs(before) < free - before


# --- runs ----------------------------------------------------------------------------------------


def small(**changes: Any) -> Any:
    given = {"groups": 4, "group_size": 4, "rows": 16, "updates": 2}
    return toy_flow.plane_config(**(given | changes))


def go(folder: Path, reward: Any = None, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = toy_flow.Plane()
    reward = reward or toy_flow.towards([0, 2])
    train(small(**changes), toy_flow.PlanePolicy(), reward, [0, 1, 0], model, folder)
    return model


def test_demand_20_two_processes_are_one() -> None:
    checks.check_two_processes_are_one()
    checks.check_two_processes_are_one("film", "film_alone")  # with credit by frame


class Killed(Exception):
    pass


@pytest.mark.parametrize("dies_at", [2, 3])
def test_demand_21_a_killed_run_goes_on_to_the_same_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    """At the end of an epoch, and in the middle of one: then its rollouts come from the disk,
    for the policy that made them is gone."""
    loop = replace(toy_flow.LOOP, steps=6)
    go(tmp_path / "whole", loop=loop)
    true = Rollouts.batch

    def dies(self: Rollouts, index: int) -> Any:
        if index // self.config.for_loop(1).accumulate == dies_at:
            raise Killed
        return true(self, index)

    monkeypatch.setattr(Rollouts, "batch", dies)
    with pytest.raises(Killed):
        go(tmp_path / "parts", loop=loop)
    monkeypatch.undo()
    go(tmp_path / "parts", loop=loop)
    one, two = checks.state(tmp_path / "whole"), checks.state(tmp_path / "parts")
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def test_demand_22_rollouts_are_the_raw_weights_and_exports_the_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played, looked, left = [], [], []
    true = Rollouts._play

    def watched(self: Rollouts, number: int) -> Any:
        played.append(self.model)
        return true(self, number)

    monkeypatch.setattr(Rollouts, "_play", watched)
    torch.manual_seed(0)
    model = toy_flow.Plane()
    loop = replace(toy_flow.LOOP, steps=4, sheet_every=2)
    outcome = train(
        small(loop=loop), toy_flow.PlanePolicy(), toy_flow.towards([0, 2]), [0, 1], model, tmp_path,
        eval_fn=lambda ema: looked.append(ema) or {"seen": 1.0},
        export_fn=lambda ema, folder: left.append(ema),
    )  # fmt: skip
    assert all(each is model for each in played) and len(played) == 2
    assert all(each is outcome.ema for each in (*looked, *left)) and outcome.ema is not model
    saved = checks.state(tmp_path)
    for name, tensor in outcome.ema.state_dict().items():
        assert torch.equal(tensor, saved[f"ema/{name}"])
        assert not torch.equal(tensor, model.state_dict()[name])


@pytest.fixture(scope="module")
def dit_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, WanDiT, dict[str, Tensor]]:
    """Two updates of adapters on the toy DiT with two subjects, and the weights before."""
    folder = tmp_path_factory.mktemp("dit")
    with torch.enable_grad():
        model = toy_dit.model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(
            toy_dit.config(beta=0.01, keep=2), toy_dit.policy(guidance=toy_dit.ON),
            toy_dit.brightness, toy_dit.tasks(), model, folder,
            export_fn=lambda ema, path: sft.export(ema, path, adapters=True),
        )  # fmt: skip
    return folder, model, before


def test_demand_41_an_update_of_the_shipped_classes(
    dit_run: tuple[Path, WanDiT, dict[str, Tensor]],
) -> None:
    folder, model, before = dit_run
    first, second = read_log(folder / "log.jsonl")
    assert first["ratio_off"] <= 1e-6 < second["ratio_off"] < 1
    assert first["kl"] < 1e-12 < second["kl"]
    for row in (first, second):
        assert all(torch.isfinite(torch.tensor(value)) for value in row.values())
        assert {"reward", "reward_std", "live", "clipped_0", "rollout_s", "reward_s"} <= row.keys()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed and all(".lora_" in name for name in changed)


def test_demand_23_what_is_exported_has_the_velocity_of_what_was_trained(
    dit_run: tuple[Path, WanDiT, dict[str, Tensor]],
) -> None:
    """Base and adapters merged say what the averaged adapters said, and the file holds the bf16
    rounding of just that. (Random weights rounded to bf16 differ by 5e-3 under guidance 2.5.)"""
    folder, _, _ = dit_run
    saved = checks.state(folder)
    averaged = toy_dit.model()
    with torch.no_grad():
        for name, parameter in averaged.named_parameters():
            if f"ema/{name}" in saved:
                parameter.copy_(saved[f"ema/{name}"])
        merged = lora.merged(averaged).eval()
        task, policy = toy_dit.tasks()[0], toy_dit.policy(guidance=toy_dit.ON)
        x = torch.randn(1, 16, 2, 8, 12, generator=torch.Generator().manual_seed(0))
        want, got = (policy.velocity(each, [task])(x, 0.6) for each in (averaged, merged))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    exported = load_file(folder / "dit.safetensors")
    assert exported.keys() == merged.state_dict().keys()
    assert all(torch.equal(t, exported[n]) for n, t in merged.bfloat16().state_dict().items())
    base = toy_dit.model().state_dict()["blocks.0.self_attn.q.base_layer.weight"]
    assert not torch.equal(base.bfloat16(), exported["blocks.0.self_attn.q.weight"])


def test_a_window_and_one_noise_for_a_group_are_trained_too(tmp_path: Path) -> None:
    rollout = RolloutConfig(
        10, noise=Noise("id_crafter", 0.7), window=2, reach=6, same_noise=True, branch=True
    )
    loop = replace(toy_flow.LOOP, steps=2)
    go(tmp_path, loop=replace(loop, log_every=1), rollout=rollout, train_steps=0, beta=0.01)
    rows = read_log(tmp_path / "log.jsonl")
    assert rows[0]["ratio_off"] <= 1e-6 and TOTAL in rows[0]
