"""The policy that reinforcement started from: demand 15."""

from __future__ import annotations

import torch

from tests.training import grpo_checks as checks
from tests.training import toy_dit
from training.reference import Reference


def test_demand_15_the_kl_is_zero_at_the_start_even_of_a_lora_that_has_learned() -> None:
    checks.check_kl_starts_at_zero()


def test_inside_it_is_the_reference_and_after_it_the_model_to_the_bit() -> None:
    model = toy_dit.model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    reference = Reference(model)
    assert set(reference.kept) == {n for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    after = {n: p.detach().clone() for n, p in model.named_parameters()}
    with reference.standing_in(model):
        assert not torch.is_grad_enabled()
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(torch.equal(p, after[n]) for n, p in model.named_parameters())
    assert any(not torch.equal(before[n], after[n]) for n in before)


def test_an_error_inside_brings_the_model_back() -> None:
    model = torch.nn.Linear(2, 2)
    reference = Reference(model)
    with torch.no_grad():
        model.weight.add_(1)
    want = model.weight.detach().clone()
    try:
        with reference.standing_in(model):
            raise KeyError
    except KeyError:
        assert torch.equal(model.weight, want) and torch.is_grad_enabled()
