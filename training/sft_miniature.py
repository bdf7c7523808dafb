"""The miniature's generator: five recipes, each beginning with what the one before has left.

    miniature_sft_small   clips of half the size    what the words say: places, motions, light
    miniature_sft_still   single frames, full size  who is who: the references, in their roles
    miniature_sft         clips at full size        both, in motion
    miniature_sft_more    clips not seen in motion  faces, as a small change to what ships
    miniature_lora        adapters on the result
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from engine.dit import STREAM_PARAMETERS
from training import dist
from training.data.loader import Dropout
from training.loop import LoopConfig
from training.publish import CHANGE_SPACING, GRID
from training.sft import DataConfig, SftConfig, precompute_part, run_config

SHIPPED = Path("models/miniature")
# The identity stream, and the attention of the video to it and to the words.
READS = "^(" + "|".join(map(re.escape, STREAM_PARAMETERS)) + ")|cross_attn"

# What the shards are made with, and the recipe (and its run's folder) that makes it.
ENCODER_FILES = {
    "vae.safetensors": "miniature_vae",
    "text.safetensors": "text",
    "text_tokenizer.json": "text",
    "vlm.safetensors": "vlm",
    "vlm_tokenizer.json": "vlm",
}


def gather_encoders(runs: Path, target: Path) -> None:
    """Copies the exported encoders, once: a later export changes nothing here.

    Each comes from its run, or where that has not been run here from the shipped model.

    Raises:
        FileNotFoundError: an encoder has not been trained; the message names its recipe.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, run_name in ENCODER_FILES.items():
        if (target / name).exists():
            continue
        source = runs / run_name / name
        if not source.exists() and (SHIPPED / name).exists():
            source = SHIPPED / name
        if not source.exists():
            recipe = f"miniature_{run_name.removeprefix('miniature_')}"
            raise FileNotFoundError(f"{source} is missing: run `troupe train {recipe}` first")
        shutil.copyfile(source, target / name)


def miniature() -> SftConfig:
    """The miniature's numbers, for two cores: full size, from the weights of `miniature_still`.

    Two noises share a clip's conditions; times lean to noise, where references and motions are
    decided; a reader of latents says what the squared error hardly sees; the decay happens on the
    grid that ships; VLM tokens are left out until the VLM knows who does what."""
    runs = Path("runs")
    return SftConfig(
        loop=LoopConfig(
            "miniature_sft",
            minutes=150,
            lr=1.2e-3,
            muon_lr=0.008,
            decay_fraction=0.3,
            warmup=30,
            ema=0.997,
            save_every_s=120,
            sheet_every=500,
            log_every=20,
        ),
        data=DataConfig(
            runs / "shards", runs / "encoders", plan=((0, 31),), batch_size=8, alike=2
        ),
        dropout=Dropout(everything=0.08, subjects=0.04, vlm=0.0, text=0.04),
        region_gain=5.0,
        identity_gain=0.04,
        reader=runs / "latent_reader" / "latent_reader.safetensors",
        grid=GRID,
        draws=2,
        shift=4.0,
        base=runs / "miniature_sft_still" / "dit.safetensors",
        use_vlm_tokens=False,
        compile=True,
        num_processes=2,
    )


def miniature_still() -> SftConfig:
    """Who is who, on single frames at full size: a still costs a tenth of a clip, so here the model
    learns to draw the characters of its references in their roles. Several noises share a clip's
    conditions. Times lean to noise, where the references decide; errors in the characters' boxes
    count six times those of the background, which is learned first (docs/training.md)."""
    config = miniature()
    loop = replace(config.loop, name="miniature_sft_still", minutes=150, lr=1.5e-3, muon_lr=0.01)
    data = replace(
        config.data,
        shards=Path("runs/shards_still"),
        plan=((0, 72),),
        batch_size=16,
        still=True,
    )
    return replace(
        config,
        loop=loop,
        data=data,
        base=Path("runs/miniature_sft_small/dit.safetensors"),
        dropout=Dropout(everything=0.06, subjects=0.03, vlm=0.0, text=0.03),
        region_gain=6.0,
        grid=0,
        draws=4,
    )


def miniature_small() -> SftConfig:
    """The same model at half the size in x and y, where it learns what the words say: places,
    motions, light. A step costs a tenth (as Wan was made, small pictures first)."""
    config = miniature()
    loop = replace(
        config.loop,
        name="miniature_sft_small",
        minutes=43,
        lr=1.5e-3,
        muon_lr=0.01,
        decay_fraction=0.08,
    )
    data = replace(
        config.data,
        shards=Path("runs/shards_small"),
        plan=((0, 4), (200, 12), (500, 24)),
        batch_size=32,
        mixed=True,
        alike=1,
        height=32,
        width=48,
        reference_size=32,
    )
    # One noise a clip, times as they come.
    return SftConfig(
        loop, data, use_vlm_tokens=False, compile=True, num_processes=config.num_processes
    )


def miniature_more() -> SftConfig:
    """On from the shipped transformer, on clips that it has not seen in motion, to be shipped as a
    change beside its numbers (`engine.change`): .27 MB of the history for each version.

    What it lacks is lost below t = .75, where noise still shows who is who (docs/training.md): so
    times lean less to noise than before, and the identity stream and the cross-attentions stay as
    they are; the feed-forwards too, which gain little for their size. Two fifths of the tokens,
    background first, are left out until the rate decays."""
    config = miniature()
    loop = replace(
        config.loop,
        name="miniature_sft_more",
        minutes=100,
        lr=1e-3,
        muon_lr=0.007,
        decay_fraction=0.25,
    )
    first = max(num for _, num in config.data.plan) * config.data.rows
    data = replace(config.data, shards=Path("runs/shards_more"), plan=((0, 28),), first=first)
    return replace(
        config,
        loop=loop,
        data=data,
        base=SHIPPED / "dit.safetensors",
        grid=0,
        change=CHANGE_SPACING,
        frozen=READS + r"|\.ffn\.",
        kept=0.6,
        shift=2.0,
    )


def run_shards() -> None:
    """Recipe `miniature_shards`: only the shards of stills and clips, in two processes."""
    gather_encoders(Path("runs"), Path("runs/encoders"))
    for config in (miniature_still(), miniature()):
        most = max(num for _, num in config.data.plan)
        dist.launch(partial(precompute_part, config, most), config.num_processes)


def run_small() -> None:
    """Recipe `miniature_sft_small`: half size, without VLM tokens; export at its run's folder."""
    gather_encoders(Path("runs"), Path("runs/encoders"))
    run_config(miniature_small())


def run_still() -> None:
    """Recipe `miniature_sft_still`: single frames, from what `miniature_sft_small` left."""
    gather_encoders(Path("runs"), Path("runs/encoders"))
    run_config(_from_shipped(miniature_still()))


def run() -> None:
    """Recipe `miniature_sft`: the videos at full size; export at runs/miniature_sft.

    Starts from what `miniature_sft_still` left, or else from the shipped transformer.
    """
    gather_encoders(Path("runs"), Path("runs/encoders"))
    run_config(_from_shipped(miniature()))


def run_more() -> None:
    """Recipe `miniature_sft_more`: from the shipped transformer; export at its run's folder."""
    gather_encoders(Path("runs"), Path("runs/encoders"))
    run_config(miniature_more())


def _from_shipped(config: SftConfig) -> SftConfig:
    """Where the run before has not been made here, the shipped transformer takes its place."""
    assert config.base is not None
    return config if config.base.exists() else replace(config, base=SHIPPED / "dit.safetensors")


def run_lora() -> None:
    """Recipe `miniature_lora`: adapters of rank 8 on the trained miniature."""
    config = miniature()
    loop = replace(config.loop, name="miniature_lora", minutes=10.0, muon_lr=None, lr=5e-4)
    config = replace(config, grid=0, identity_gain=0.0)
    base = Path("runs/miniature_sft/dit.safetensors")
    gather_encoders(Path("runs"), Path("runs/encoders"))
    run_config(_from_shipped(replace(config, loop=loop, base=base, lora=8)))
