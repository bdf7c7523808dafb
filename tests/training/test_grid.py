"""Rounded inside, untouched outside, and only while the rate decays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from engine.change import nearest
from engine.checkpoint import GRID_STEP, on_grid
from training.grid import near, rounded
from training.loop import LoopConfig, run


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.SiLU(), nn.Linear(8, 6))


def test_inside_the_weights_are_those_that_ship() -> None:
    net = model()
    exact = {name: value.clone() for name, value in net.state_dict().items()}
    with rounded(net, 3):
        for name, value in net.state_dict().items():
            if value.ndim < 2:
                assert torch.equal(value, exact[name])
                continue
            shipped = on_grid(name, exact[name], 3)
            want = shipped[name].float() * shipped[name + GRID_STEP]
            torch.testing.assert_close(value, want)
            assert not torch.equal(value, exact[name])
    assert all(torch.equal(value, exact[name]) for name, value in net.state_dict().items())


def test_inside_the_weights_are_the_base_and_a_change() -> None:
    base, net = dict(model().named_parameters()), model()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    exact = {name: value.clone() for name, value in net.state_dict().items()}
    with near(net, base, 2.0):
        for name, value in net.state_dict().items():
            change = value - base[name]
            torch.testing.assert_close(change, nearest(exact[name] - base[name], 2.0))
            assert 1 < len((change * 1e4).round().unique()) <= 15
    assert all(torch.equal(value, exact[name]) for name, value in net.state_dict().items())


def test_weights_come_back_after_an_error_too() -> None:
    net = model()
    exact = net[0].weight.detach().clone()
    with pytest.raises(RuntimeError), rounded(net, 1):
        raise RuntimeError("out of memory")
    assert torch.equal(net[0].weight, exact)


def test_gradients_are_those_at_the_rounded_point() -> None:
    net, twin, x = model(), model(), torch.randn(4, 6)
    with rounded(net, 2):
        twin.load_state_dict(net.state_dict())
        net(x).square().sum().backward()
    twin(x).square().sum().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("fraction", "inside"), [(0.0, 1), (0.5, 4), (1.0, 8)])
def test_a_run_rounds_while_its_rate_decays(fraction, inside, tmp_path) -> None:
    seen = []

    def around(net: nn.Module):  # noqa: ANN202
        seen.append(1)
        return rounded(net, 3)

    def loss(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": net(x).square().mean()}

    config = LoopConfig(
        "x", steps=8, warmup=1, muon_lr=None, decay_fraction=fraction, sheet_every=0, bf16=False
    )
    run(config, model(), loss, lambda index: torch.randn(4, 6), folder=tmp_path, around=around)
    assert len(seen) == inside
