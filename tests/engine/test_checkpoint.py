"""Tensors on disk: rounded as said, loaded under the right names, or refused."""

import pytest
import torch
from torch import nn

from engine.change import SMALL
from engine.checkpoint import (
    GRID_STEP,
    in_steps,
    load_strict,
    on_grid,
    read_tensors,
    tensor_bytes,
)
from engine.errors import CheckpointError


def test_tensors_survive_rounded_to_bf16(tmp_path):
    module = nn.Linear(3, 2)
    path = tmp_path / "w.safetensors"
    path.write_bytes(tensor_bytes(module.state_dict()))
    other = nn.Linear(3, 2)
    load_strict(other, path)
    assert other.weight.dtype == torch.float32
    assert torch.equal(other.weight, module.weight.bfloat16().float())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(2, 3)}, "lacks bias"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "x": torch.ones(1)}, "unknown x"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(2)}, r"weight is \(3, 2\), not \(2, 3\)"),
    ],
)
def test_strict_loading_names_the_key(tensors, message):
    with pytest.raises(CheckpointError, match=message):
        load_strict(nn.Linear(3, 2), tensors, "w")


def test_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "w.safetensors"
    torch.save({"weight": torch.ones(2, 3)}, path)
    with pytest.raises(CheckpointError, match="cannot read"):
        load_strict(nn.Linear(3, 2), path)


@pytest.mark.parametrize("outlier", [0.0, 500.0])
def test_a_grid_comes_back_within_half_a_step(tmp_path, outlier):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = outlier
    parts = {**on_grid("w", weight, 6), **on_grid("b", weight[1], 6)}
    path = tmp_path / "grid.safetensors"
    path.write_bytes(tensor_bytes(parts))
    found = read_tensors(path)
    assert found.keys() == {"w", "b"} and found["w"].dtype == torch.float32
    step = float(parts["w" + GRID_STEP])
    assert (found["w"] - weight).abs().max() <= step / 2 * 1.001
    size = float(weight.square().mean().sqrt())
    assert step == pytest.approx(max(size / 6, outlier / 127), rel=0.01)
    assert torch.equal(found["b"], weight[1].bfloat16().float())


def test_a_matrix_of_zeros_has_no_grid():
    assert on_grid("w", torch.zeros(2, 2), 6).keys() == {"w"}


@pytest.mark.parametrize(
    "tensors",
    [
        {"w" + GRID_STEP: torch.ones(1)},
        {"w" + GRID_STEP: torch.ones(1), "w": torch.ones(2, 2)},
        {"w" + GRID_STEP: torch.ones(2), "w": torch.ones(2, 2, dtype=torch.int8)},
    ],
)
def test_a_step_without_its_numbers_is_refused(tmp_path, tensors):
    (tmp_path / "bad.safetensors").write_bytes(tensor_bytes(tensors))
    with pytest.raises(CheckpointError, match="step of no (int8 )?tensor"):
        read_tensors(tmp_path / "bad.safetensors")


def test_numbers_without_a_step_or_with_a_senseless_one_are_refused(tmp_path):
    numbers = torch.ones(2, 2, dtype=torch.int8)
    for step in (None, 0.0, -1.0, float("nan"), float("inf")):
        tensors = {"w": numbers}
        if step is not None:
            tensors["w" + GRID_STEP] = torch.tensor([step])
        (tmp_path / "bad.safetensors").write_bytes(tensor_bytes(tensors))
        with pytest.raises(CheckpointError, match="grid step of w|must be a positive"):
            read_tensors(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-44])
def test_what_fits_no_grid_is_refused(value):
    with pytest.raises(CheckpointError, match="w has no grid"):
        on_grid("w", torch.full((2, 2), value), 6)


@pytest.mark.parametrize("shape", [(3, 5), (200, 130)])
def test_in_steps_what_is_far_out_stays_there(tmp_path, shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    weight[0, 0], weight[1, 1] = 60.0, -60.0
    (tmp_path / "w").write_bytes(tensor_bytes(in_steps("w", weight, 0.6)))
    step = (0.6 if weight.numel() >= SMALL else 0.15) * weight.square().mean().sqrt()
    read = read_tensors(tmp_path / "w")["w"]
    torch.testing.assert_close(read, torch.round(weight / step) * step)


@pytest.mark.parametrize("size", [float("nan"), float("inf")])
def test_what_has_no_size_has_no_steps(size):
    with pytest.raises(CheckpointError, match="w has no steps"):
        in_steps("w", torch.full((3, 3), size), 0.6)


@pytest.mark.parametrize("weight", [torch.zeros(3, 3), torch.tensor([0.1, -70.0])])
def test_what_needs_no_steps_stays(weight):
    """As while training, see `training.grid.packed`."""
    assert list(in_steps("w", weight, 0.6)) == ["w"] and in_steps("w", weight, 0.6)["w"] is weight
