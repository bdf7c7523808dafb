"""Recipe `miniature_readers`: who is in a guess, and where; what identity guidance asks.

    runs/latent_reader ─┐                     ┌─ true clips, stills, reference pictures
                        ├─ trained further on ┤
    models/miniature ───┘                     └─ guesses of its transformer (`training.guesses`)
    runs/locator ───────────────────────────────▶ runs/readers/reader.safetensors
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from engine.checkpoint import load_strict
from engine.convnet import load
from engine.dit import WanDiT
from engine.presets import MINIATURE, Preset
from engine.reader import FILE, Locator, Readers
from training import guesses, latent_reader, locator
from training.convnet import loop_of, save
from training.data.precompute import digest
from training.data.shards import ShardFolder
from training.grid import rounded
from training.latent_reader import CONFIG, Source, draw_batch, examine, examples, pictures
from training.loop import run as train
from training.sft import say

FOLDER = Path("runs/readers")
STEPS = 3500
COLUMNS = ("video", "refs", "text")


def assembled(who: nn.Module, where: Locator, latent_dim: int) -> Readers:
    """Both in one, as a model folder brings them."""
    readers = Readers(latent_dim, CONFIG)
    readers.who.load_state_dict(who.state_dict())
    readers.where = where
    return readers


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
    """Trains the reader of the file `reader` on all shards that are on disk; the last one of clips
    only examines. dit: the transformer's file that guesses. where: the locator's.

    Raises FileNotFoundError, CheckpointError: one of them is missing; the recipe that makes it is
    named.
    """
    num_stills, num_clips = latent_reader.ready(stills, clips, COLUMNS)
    net = latent_reader.load_reader(reader, preset.vae.z_dim)
    locating = load(Locator(preset.vae.z_dim, CONFIG), where, "miniature_locator")
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
        return {name: examine(model, source)["mean"] for name, source in unseen.items()}

    torch.manual_seed(0)
    train(
        loop_of("readers", steps),
        net.train().requires_grad_(True),
        latent_reader.loss,
        lambda index: draw_batch(sources),
        eval_fn=look,
        export_fn=lambda model, to: save(assembled(model, locating, preset.vae.z_dim), to / FILE),
        folder=folder,
        around=partial(rounded, steps=latent_reader.GRID),
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
