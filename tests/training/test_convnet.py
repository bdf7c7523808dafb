"""The instruments' network: shapes, and a file that loads strictly or not at all."""

from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from training.convnet import ResidualBlock, Trunk, load, save


def test_trunk_halves_three_times() -> None:
    assert Trunk((8, 16, 24))(torch.zeros(2, 3, 48, 48)).shape == (2, 24, 6, 6)


def test_block_without_its_branch_is_the_identity() -> None:
    block = ResidualBlock(8, 8).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_saved_weights_come_back_rounded_to_bf16(tmp_path: Path) -> None:
    net = Trunk((8, 16, 24))
    save(net, tmp_path / "net.safetensors")
    again = load(Trunk((8, 16, 24)), tmp_path / "net.safetensors")
    for name, value in net.state_dict().items():
        kept = again.state_dict()[name]
        assert kept.dtype == value.dtype
        wanted = value.bfloat16().float() if value.is_floating_point() else value
        assert torch.equal(kept, wanted), name
    assert not again.training


def test_other_network_is_refused(tmp_path: Path) -> None:
    save(Trunk((8, 16)), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="another network"):
        load(Trunk((8, 16, 24)), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load(Trunk((8, 16)), tmp_path / "absent.safetensors")
