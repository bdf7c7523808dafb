"""Recipe `miniature_readers`: who is in a guess, and where; what identity guidance asks.

    models/miniature ─▶ guesses of its transformer (`training.guesses`) ─┐
    true clips, stills, reference pictures ──────────────────────────────┤
    runs/latent_reader ─ what a larger one sees in them ─────────────────┴▶ the reader ─┐
    runs/locator ───────────────────────────────────────────▶ runs/readers/reader.safetensors

First, half of what it learns is who is there, half what the larger one makes of it (distillation:
Hinton et al., arXiv 1503.02531). Then it learns to stay right: every second crop is moved towards
who somebody else is, as guidance would move it, and still shows who it showed (adversarial
training: Madry et al., arXiv 1706.06083). A reader that small moves deceive is worth little as a
guide; what satisfies one that stands them is what people see too (Santurkar et al., arXiv
1906.09453; for guidance Kawar et al., arXiv 2208.08664). While the rate decays its matrices are
those that will ship.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from training.grid import READER_SPACING, packed
from training.latent_reader import Source, draw_batch, examine, examples, pictures
from training.loop import run as train
from training.sft import say

assert MINIATURE.reader is not None
CONFIG = MINIATURE.reader
FOLDER = Path("runs/readers")
STEPS, HARD_STEPS = 4500, 3300
REACH, MOVES, NOISE = 0.5, 2, 0.5
"""How far a crop is moved at most, root mean square in latents' units; in so many steps; with so
much noise under each reading."""
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


def standing(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """{"loss", "moved", "plain"}: the surprise of all crops, of the half that is moved towards the
    reading of another one of them, and of the rest."""
    crops_NCHW, factors_NF = batch
    half = len(crops_NCHW) // 2
    order_N = torch.randperm(len(crops_NCHW))
    crops_NCHW, factors_NF = crops_NCHW[order_N], factors_NF[order_N]
    model.eval()
    moved_NCHW = deceptive(model, crops_NCHW[:half], REACH * torch.rand(half))
    model.train()
    read_NV = model(torch.cat([moved_NCHW, crops_NCHW[half:]]))
    moved = latent_reader.surprise(read_NV[:half], factors_NF[:half])
    plain = latent_reader.surprise(read_NV[half:], factors_NF[half:])
    return {"loss": (moved + plain) / 2, "moved": moved, "plain": plain}


def deceptive(model: nn.Module, crops_NCHW: Tensor, reach_N: Tensor) -> Tensor:
    """The crops, moved by up to `reach` (root mean square) to be read as another of them is."""
    with torch.no_grad():
        wanted_NV = model(crops_NCHW)[torch.randperm(len(crops_NCHW))]
    for _ in range(MOVES):
        x = crops_NCHW.detach().requires_grad_()
        read_NV = model(x + NOISE * torch.randn_like(x))
        away = divergence(wanted_NV, read_NV, SIZES).sum()
        (gradient,) = torch.autograd.grad(away, x)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        crops_NCHW = crops_NCHW - reach_N[:, None, None, None] / MOVES * gradient / size
    return crops_NCHW.detach()


def run_on(
    stills: ShardFolder,
    clips: ShardFolder,
    dit: Path,
    reader: Path,
    where: Path,
    folder: Path,
    steps: int = STEPS,
    hard_steps: int = HARD_STEPS,
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

    def draw(index: int) -> Batch:
        return draw_batch(sources)

    torch.manual_seed(0)
    net = LatentReader(preset.vae.z_dim, CONFIG)
    begun = loop_of("readers_first", steps)
    first = train(begun, net, beside(larger), draw, eval_fn=look, folder=folder / "first")
    if not first.finished:
        return
    net.load_state_dict(first.ema.state_dict())
    train(
        replace(loop_of("readers", hard_steps), lr=1e-3, muon_lr=0.01),
        net,
        standing,
        draw,
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
