"""The instruments' network: shapes, and a file that loads strictly or not at all."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from engine.convnet import ResidualBlock, Trunk, load
from engine.errors import CheckpointError


def test_trunk_halves_three_times() -> None:
    assert Trunk((8, 16, 24))(torch.zeros(2, 3, 48, 48)).shape == (2, 24, 6, 6)


def test_block_without_its_branch_is_the_identity() -> None:
    block = ResidualBlock(8, 8).eval()
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_other_network_is_refused(tmp_path: Path) -> None:
    save_file(Trunk((8, 16)).state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="net.safetensors lacks"):
        load(Trunk((8, 16, 24)), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load(Trunk((8, 16)), tmp_path / "absent.safetensors")
