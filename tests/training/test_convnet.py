"""An instrument's file is opened by what serves it."""

from pathlib import Path

import torch

from engine.convnet import Trunk, load
from training.convnet import save


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
