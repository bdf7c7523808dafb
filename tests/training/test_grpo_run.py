"""What is trained: adapters scaled as told, or everything."""

from __future__ import annotations

import pytest
import torch
from peft.tuners.lora import LoraLayer

from tests.engine.conftest import TOY_PRESET, random_dit
from tests.training import toy_dit
from training import lora
from training.grpo_run import GrpoRun, prepared


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
