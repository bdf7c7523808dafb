"""Recipe `miniature_readers`: who is in a guess, and where; what identity guidance asks.

    models/miniature ─▶ guesses of its transformer (`training.guesses`) ─┐
    true clips, stills, reference pictures ──────────────────────────────┤
    runs/latent_reader ─ what a larger one sees in them ─────────────────┴▶ the reader ─┐
    runs/locator ───────────────────────────────────────────▶ runs/readers/reader.safetensors

Half of what it learns is who is there, half what the larger one makes of it (distillation: Hinton
et al., arXiv 1503.02531); while the rate decays its matrices are those that will ship.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.checkpoint import load_strict
from engine.convnet import load
from engine.dit import WanDiT
from engine.presets import MINIATURE, Preset
from engine.reader import FILE, LatentReader, Readers, divergence
from training import guesses, latent_reader, locator
from training.convnet import loop_of, save
from training.data.precompute import digest
from training.data.shards import ShardFolder
from training.gallery import SIZES
from training.grid import packed
from training.latent_reader import Source, draw_batch, examine, examples, pictures
from training.loop import run as train
from training.publish import READER_SPACING
from training.sft import say

assert MINIATURE.reader is not None
CONFIG = MINIATURE.reader
FOLDER = Path("runs/readers")
STEPS = 7000
BESIDE = 0.5
"""Share of the larger reader in what is learnt."""
COLUMNS = ("video", "refs", "text")

Batch = tuple[Tensor, Tensor]  # crops [N, C, 12, 12] and the factors of who is on them [N, F]


def beside(larger: nn.Module) -> Callable[[nn.Module, Batch], dict[str, Tensor]]:
    """A loss {"loss", "named", "seen"}, nats summed over the factors: `named` of who is there,
    `seen` KL(what the larger reader sees || what this one sees)."""

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        crops_NCHW, factors_NF = batch
        seen_NV = model(crops_NCHW)
        with torch.no_grad():
            wanted_NV = larger(crops_NCHW)
        named = latent_reader.surprise(seen_NV, factors_NF)
        seen = divergence(wanted_NV, seen_NV, SIZES).mean()
        return {"loss": torch.lerp(named, seen, BESIDE), "named": named, "seen": seen}

    return loss


def run_on(
    stills: ShardFolder,
    clips: ShardFolder,
    dit: Path,
    reader: Path,
    where: Path,
    folder: Path,
    steps: int = STEPS,
    preset: Preset = MINIATURE,
) -> None:
    """Trains on all shards that are on disk; the last one of clips only examines. dit: the
    transformer's file that guesses. reader: the larger reader's. where: the locator's.

    Raises FileNotFoundError, CheckpointError: one of them is missing; the recipe that makes it is
    named.
    """
    num_stills, num_clips = latent_reader.ready(stills, clips, COLUMNS)
    larger = latent_reader.load_reader(reader, preset.vae.z_dim)
    made = Readers(preset.vae.z_dim, CONFIG)
    made.where = load(made.where, where, "miniature_locator")
    generator = WanDiT(preset.dit)
    load_strict(generator, dit)
    guesses.write(clips, COLUMNS, generator.eval(), digest(dit), num_clips, say)
    known, last = range(num_clips - 1), [num_clips - 1]
    true, strangers = examples(clips, known), examples(clips, last)
    sources: list[tuple[Source, int]] = [
        (examples(stills, range(num_stills)), 24),
        (true, 72),
        (pictures(clips, known), 32),
        (guesses.guessed(true), 96),
    ]
    unseen: dict[str, Source] = {
        "mean": strangers,
        "pictures": pictures(clips, last),
        "guesses": guesses.guessed(strangers),
    }

    def look(model: nn.Module) -> dict[str, float]:
        torch.manual_seed(0)
        with packed(model, READER_SPACING):  # while the rate decays, the exact ones drift from them
            return {name: examine(model, source)["mean"] for name, source in unseen.items()}

    def export(model: nn.Module, to: Path) -> None:
        made.who.load_state_dict(model.state_dict())
        save(made, to / FILE)

    torch.manual_seed(0)
    train(
        loop_of("readers", steps),
        LatentReader(preset.vae.z_dim, CONFIG),
        beside(larger),
        lambda index: draw_batch(sources),
        eval_fn=look,
        export_fn=export,
        folder=folder,
        around=partial(packed, spacing=READER_SPACING),
    )


def run() -> None:
    """The recipe, with the transformer that ships."""
    from training import sft_miniature

    stills, clips = sft_miniature.miniature_still().data, sft_miniature.miniature().data
    run_on(
        stills.folder(),
        clips.folder(),
        Path("models/miniature/dit.safetensors"),
        latent_reader.FOLDER / latent_reader.FILE,
        locator.FOLDER / locator.FILE,
        FOLDER,
    )
