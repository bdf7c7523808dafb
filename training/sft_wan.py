"""SFT of the published sizes: Wan 2.1 with the identity stream, on GPUs, sharded by FSDP2.

Both recipes read precomputed shards (columns as in `training.data.shards`) of the user's own clips
from runs/<name>/shards and start from the upstream weights at runs/<name>/base.safetensors
(`engine.checkpoint` maps their names). They are the miniature's recipe with other numbers; what
runs is the same code.
"""

from __future__ import annotations

from pathlib import Path

from engine.presets import WAN_1_3B, WAN_14B, Preset
from training import dist, sft
from training.loop import LoopConfig
from training.sft import DataConfig, SftConfig


def config(name: str, preset: Preset, num_processes: int, batch_size: int, lr: float) -> SftConfig:
    """AdamW alone (slices of matrices have no singular vectors), bf16 compute, fp32 masters."""
    folder = Path("runs") / name
    return SftConfig(
        loop=LoopConfig(
            name, steps=20_000, lr=lr, muon_lr=None, betas=(0.9, 0.95), weight_decay=0.01,
            warmup=500, ema=0.9999, accumulate=4, device="cuda", prefetch=4,
            save_every_s=900, sheet_every=0, log_every=10,
        ),
        data=DataConfig(
            folder / "shards", folder / "encoders", ((0, 64),), batch_size=batch_size, mixed=True
        ),
        preset=preset,
        shift=preset.defaults.shift,
        base=folder / "base.safetensors",
        fsdp=True,
        num_processes=num_processes,
    )  # fmt: skip


def sft_1_3b() -> SftConfig:
    """Wan 2.1 T2V 1.3B on one node of eight GPUs."""
    return config("sft_1_3b", WAN_1_3B, num_processes=8, batch_size=2, lr=2e-5)


def sft_14b() -> SftConfig:
    """Wan 2.1 T2V 14B on one node of eight GPUs of 80 GB."""
    return config("sft_14b", WAN_14B, num_processes=8, batch_size=1, lr=1e-5)


def run(config: SftConfig) -> None:
    """Trains from the shards that are there.

    Raises:
        FileNotFoundError: the first shard or the base weights are missing; says where they belong.
    """
    needed = [config.data.folder().file(column, 0) for column in config.columns]
    needed += [config.base] if config.base is not None else []
    for path in needed:
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: this recipe trains on your own clips")
    sft.run_config(config, encode=False, backend=dist.ON_CARDS)


def run_1_3b() -> None:
    """Recipe `sft_1_3b`."""
    run(sft_1_3b())


def run_14b() -> None:
    """Recipe `sft_14b`."""
    run(sft_14b())
