"""The state file: whole or absent, and refused by another model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from training.optim import OptimConfig
from training.state import TrainState


def trained(width: int = 4) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
    state = TrainState.begin(model, OptimConfig(lr=0.1))
    for _ in range(3):
        state.optimizer.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        state.optimizer.step()
        state.position.step += 1
        state.update_ema(0.9)
    return state


def test_save_and_resume_give_back_every_tensor(tmp_path: Path) -> None:
    state = trained()
    state.position.elapsed_s, state.position.decay_start = 12.5, 2
    state.save(tmp_path / "state" / "train.safetensors")
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    other = TrainState.begin(model, OptimConfig(lr=0.1))
    assert other.resume(tmp_path / "state" / "train.safetensors")
    assert other.position == state.position
    pairs = [(state.model, other.model), (state.ema, other.ema)]
    for live, back in pairs:
        for name, tensor in live.state_dict().items():
            assert torch.equal(tensor, back.state_dict()[name]), name
    ours, theirs = state.optimizer.state_tensors(), other.optimizer.state_tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_no_file_is_a_fresh_start(tmp_path: Path) -> None:
    assert not trained().resume(tmp_path / "none.safetensors")


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    trained().save(tmp_path / "s.safetensors")
    with pytest.raises(ValueError, match="s.safetensors"):
        trained(width=6).resume(tmp_path / "s.safetensors")


def test_a_save_leaves_no_temporary_file(tmp_path: Path) -> None:
    trained().save(tmp_path / "s.safetensors")
    trained().save(tmp_path / "s.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_frozen_parameters_are_not_written(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    state = TrainState.begin(model, OptimConfig())
    state.save(tmp_path / "s.safetensors")
    from safetensors.torch import load_file

    names = load_file(tmp_path / "s.safetensors")
    assert "model/1.weight" in names and "model/0.weight" not in names


def test_ema_follows_slowly_and_buffers_follow_at_once() -> None:
    state = trained()
    model, ema = state.model, state.ema
    assert not torch.equal(model[0].weight, ema[0].weight)
    assert torch.equal(model[1].num_batches_tracked, ema[1].num_batches_tracked)
