"""The published sizes: their configs build, and say what they need."""

from __future__ import annotations

import pytest
import torch

from engine.dit import WanDiT
from training import sft_wan
from training.optim import Optimizer


@pytest.mark.parametrize(("recipe", "billions"), [(sft_wan.sft_1_3b, 1.3), (sft_wan.sft_14b, 14)])
def test_the_model_builds_on_meta_and_every_weight_has_an_optimizer(
    recipe: object, billions: float
) -> None:
    config = recipe()  # type: ignore[operator]
    with torch.device("meta"):
        dit = WanDiT(config.preset.dit)
        optimizer = Optimizer(dit, config.loop.optim())
    num = sum(p.numel() for p in dit.parameters())
    assert num > billions * 1e9 and not optimizer.matrices
    assert len(optimizer.others) == len(list(dit.parameters()))
    assert config.fsdp and config.base is not None


def test_missing_shards_are_named() -> None:
    with pytest.raises(FileNotFoundError, match="video-00000"):
        sft_wan.run_14b()
