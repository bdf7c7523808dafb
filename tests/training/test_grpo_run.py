"""What is trained: adapters scaled as told, or everything."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from engine.checkpoint import read_tensors
from engine.pipeline import Engine
from tests.engine.conftest import TOY_PRESET, random_dit
from tests.training import toy_dit
from training import dist, lora
from training.grpo_run import GrpoRun, learn, prepared
from training.report import read_log


def test_adapters_begin_as_the_identity_alike_for_one_seed() -> None:
    run = GrpoRun(toy_dit.config(), rank=4, alpha=8)
    one, two = (prepared(run, random_dit(TOY_PRESET.dit)) for _ in range(2))
    layers = [m for m in one.modules() if isinstance(m, LoraLayer)]
    assert layers and all(layer.scaling[lora.ADAPTER] == 2 for layer in layers)
    first, second = lora.adapters(one), lora.adapters(two)
    assert all(torch.equal(first[n], second[n]) for n in first)
    trained = {n for n, p in one.named_parameters() if p.requires_grad}
    assert trained == set(first)
    plain, merged = random_dit(TOY_PRESET.dit).state_dict(), lora.merged(one).state_dict()
    assert all(torch.equal(merged[n], x) for n, x in plain.items())


def test_rank_0_trains_everything() -> None:
    model = random_dit(TOY_PRESET.dit).requires_grad_(False)
    run = GrpoRun(toy_dit.config(), rank=0)
    assert all(p.requires_grad for p in prepared(run, model).parameters())


def test_a_frame_that_is_not_decoded_cannot_be_given_credit() -> None:
    config = toy_dit.config(rollout={"by_frame": True})
    with pytest.raises(ValueError, match="^decoded: .* must be 0$"):
        GrpoRun(config, decoded=1)


def test_slices_are_of_all_weights() -> None:
    loop = replace(toy_dit.LOOP, muon_lr=0.01)
    for change in ({"rank": 4}, {"rank": 0, "config": toy_dit.config(loop=loop)}):
        with pytest.raises(ValueError, match="^fsdp: .* rank must be 0, muon_lr None$"):
            GrpoRun(**{"config": toy_dit.config(), "fsdp": True} | change)


def _learn(folder: Path, fsdp: bool, steps: int, **changes: Any) -> None:
    loop = replace(toy_dit.LOOP, steps=steps, log_every=1)
    config = toy_dit.config(loop=loop, beta=0.5, rows=2, **changes)
    run = GrpoRun(config, rank=0, guidance=toy_dit.ON, fsdp=fsdp)
    engine = Engine(random_dit(TOY_PRESET.dit), toy_dit.encoders("identity"), TOY_PRESET, "toy")
    with torch.enable_grad():
        learn(run, engine, toy_dit.brightness, toy_dit.tasks(), folder)


def test_weights_in_slices_learn_what_whole_ones_learn_and_go_on(tmp_path: Path) -> None:
    """Rollouts, replays under guidance, the KL to the start and the average, by two processes that
    hold half of everything each; killed between two updates of an epoch."""
    _learn(tmp_path / "one", fsdp=False, steps=3)
    for steps in (1, 3):
        dist.launch(partial(_learn, tmp_path / "two", True, steps), 2)
    one, two = (read_log(tmp_path / name / "log.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [1, 2, 3]
    for first, second in zip(one, two, strict=True):
        for name in ("reward", "loss", "kl", "grad_norm"):
            assert second[name] == pytest.approx(first[name], rel=2e-3, abs=1e-6), (name, first)
    assert two[0]["ratio_off"] <= 1e-6 and two[0]["kl"] < 1e-12 < two[1]["kl"]
    whole, slices = (read_tensors(tmp_path / name / "dit.safetensors") for name in ("one", "two"))
    begun = random_dit(TOY_PRESET.dit).state_dict()
    for name, tensor in whole.items():
        torch.testing.assert_close(slices[name], tensor, rtol=2e-2, atol=1e-3)
    moved = max(float((x.float() - begun[n]).abs().max()) for n, x in slices.items())
    assert moved > 2e-3
    saved = sorted(path.name for path in (tmp_path / "two" / "state").iterdir())
    assert saved == ["complete", *(f"step_3-{rank}_of_2.safetensors" for rank in range(2))]
