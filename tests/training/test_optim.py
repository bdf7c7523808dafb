"""Muon's matrices, who gets which optimizer, and a state that can be carried."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.optim import OptimConfig, Optimizer, hidden_matrices, orthogonalise


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 8),
            "conv": nn.Conv3d(8, 6, 3),
            "mid": nn.Linear(8, 8),
            "norm": nn.LayerNorm(8),
            "head": nn.Linear(8, 3),
        }
    )


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24), (1, 16, 16)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(1)
    singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert singular.max() < 1.35
    # the quintic trades exactness for speed: the smallest of a square matrix may lag behind
    assert singular.median() > 0.6


def test_orthogonalise_keeps_the_singular_vectors() -> None:
    torch.manual_seed(2)
    u, _ = torch.linalg.qr(torch.randn(12, 12))
    v, _ = torch.linalg.qr(torch.randn(12, 12))
    g = u @ torch.diag(torch.linspace(0.5, 2, 12)) @ v.T
    back = u.T @ orthogonalise(g[None])[0].float() @ v
    assert (back - torch.diag(back.diagonal())).abs().max() < 0.05


def test_hidden_matrices_are_linear_and_conv_inside_the_model() -> None:
    assert hidden_matrices(small_model()) == {"conv.weight", "mid.weight"}


def test_every_parameter_has_exactly_one_owner() -> None:
    model = small_model()
    optimizer = Optimizer(model, OptimConfig())
    owned = [id(p) for p in optimizer.parameters()]
    assert sorted(owned) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_left_alone() -> None:
    model = small_model()
    model["mid"].requires_grad_(False)
    names = Optimizer(model, OptimConfig())
    assert "mid.weight" not in names.matrices and "mid.bias" not in names.others


@pytest.mark.parametrize("muon_lr", [None, 0.02])
def test_it_minimises(muon_lr: float | None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
    x, y = torch.randn(64, 6), torch.randn(64, 16).tanh()
    optimizer = Optimizer(model, OptimConfig(lr=0.01, muon_lr=muon_lr))
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_state_carried_to_a_twin_continues_bit_for_bit() -> None:
    x = torch.randn(4, 8)

    def steps(model: nn.Module, optimizer: Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            model["head"](model["norm"](model["mid"](x))).square().sum().backward()
            optimizer.step(0.5)

    first, second = small_model(), small_model()
    a, b = Optimizer(first, OptimConfig()), Optimizer(second, OptimConfig())
    steps(first, a, 3)
    second.load_state_dict(first.state_dict())
    b.load_state_tensors({n: t.clone() for n, t in a.state_tensors().items()})
    steps(first, a, 3)
    steps(second, b, 3)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
