"""How the measuring instruments (`engine.convnet`) are trained and written to disk."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from training.loop import LoopConfig


def save(net: nn.Module, path: Path) -> None:
    """Weights and running statistics as bf16 safetensors: half the size, 8 bits of mantissa."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {
        name: (value.bfloat16() if value.is_floating_point() else value).contiguous()
        for name, value in net.state_dict().items()
    }
    save_file(kept, path)


def loop_of(name: str, steps: int) -> LoopConfig:
    """How the measuring instruments are trained: all three alike."""
    return LoopConfig(
        name,
        steps=steps,
        lr=2e-3,
        muon_lr=0.02,
        sheet_every=400,
        ema=0.995,
        warmup=50,
        decay_fraction=0.35,
    )
