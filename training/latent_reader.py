"""Who is in these latents: a convnet that reads a character's factors off a crop of latents.

The generator's identity loss asks it (`identity_loss`): does the clip that a velocity points at
show the same character as the true clip does? The squared error hardly sees eyes and mouths, for
they are few pixels; a reader of characters sees little else. As the ID loss of WithAnyone
(arXiv 2510.14975, section 4.2: a face encoder on crops at the true landmarks), with boxes for
landmarks, and in latents, so that nothing is decoded. It shares no weights and no pictures with the
instruments that measure identity (`training.identity`, `training.world.oracle`).

Legend: N crops, B clips, C latent channels, F latent frames, H W latents, S subjects, T pixel
frames, V factor values in a row (88), X box corners (left, top, right, bottom) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.convnet import load
from engine.crops import cut, whole_picture
from engine.presets import MINIATURE
from engine.reader import CROP, LatentReader, cells, divergence
from training.convnet import loop_of, save
from training.crops import jitter
from training.data.shards import ShardFolder, Table
from training.gallery import SIZES
from training.loop import run as train
from training.losses import latent_boxes
from training.world.clip import NUM_FRAMES, sample_script, still_moment
from training.world.identity import FACTOR_NAMES
from training.world.scene import Role

assert MINIATURE.reader is not None
CONFIG = replace(MINIATURE.reader, squeezed=48)
"""Larger than the one that guides, which learns from it (`training.readers`)."""
FOLDER = Path("runs/latent_reader")
FILE = "latent_reader.safetensors"
VISIBLE = 0.6
"""Characters of which less can be seen teach nothing."""
STEPS = 4500
CERTAIN_BELOW = 0.75
"""Time below which the identity loss counts in full; from here to noise it falls to nothing."""


def certainty(t_B: Tensor) -> Tensor:
    """Weight of the identity loss at time t: 1 below CERTAIN_BELOW, then linearly to 0 at noise,
    where the posterior mean is a blur that a reader was never shown."""
    return ((1 - t_B.float()) / (1 - CERTAIN_BELOW)).clamp(max=1)


def identity_loss(
    reader: LatentReader,
    clean_BCFHW: Tensor,
    x0_BCFHW: Tensor,
    boxes_BSTX: Tensor,
    subject_mask_BS: Tensor,
    factor: int,
) -> Tensor:
    """How differently the reader sees the subjects of two clips: [B] nats, mean over subjects and
    latent frames.

    Args:
        clean_BCFHW: the clip that the velocity points at, x_t - t v; gradients flow into it.
        x0_BCFHW: the true clip. boxes_BSTX: where its subjects are, px per pixel frame.
        subject_mask_BS: subjects that the generator was shown; a clip without any gets 0.
        factor: px per latent cell.
    """
    num_frames = x0_BCFHW.shape[2]
    boxes_BSFX = latent_boxes(boxes_BSTX, num_frames)
    shown_BSF = subject_mask_BS[:, :, None].expand(-1, -1, num_frames)
    clip_N, subject_N, frame_N = shown_BSF.nonzero(as_tuple=True)
    loss_B = x0_BCFHW.new_zeros(len(x0_BCFHW))
    if not len(clip_N):
        return loss_B
    where_N3 = cells(boxes_BSFX[clip_N, subject_N, frame_N], factor)
    seen_NV = reader(cut(clean_BCFHW[clip_N, :, frame_N], where_N3, CROP))
    with torch.no_grad():
        true_NV = reader(cut(x0_BCFHW[clip_N, :, frame_N], where_N3, CROP))
    share_N = 1 / shown_BSF.sum((1, 2))[clip_N]
    return loss_B.index_add(0, clip_N, divergence(true_NV, seen_NV, SIZES) * share_N)


def load_reader(path: Path, latent_dim: int) -> LatentReader:
    """The reader of a file written by `run`, frozen."""
    return load(LatentReader(latent_dim, CONFIG), path, "miniature_latent_reader")


# --- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """Characters in the latents of a table: row_N and frame_N say where, boxes_NX (px) and
    factors_NF who."""

    table: Table
    row_N: Tensor
    frame_N: Tensor
    boxes_NX: Tensor
    factors_NF: Tensor

    def latents(self, row: int, frame: int) -> Tensor:
        """Of one latent frame, [C, H, W]."""
        return self.table.row(row)["latents"][:, frame]

    def crops(self, pick_N: Tensor, amount: float) -> Tensor:
        """Crops of these examples, [N, C, 12, 12], with a detector's jitter."""
        rows = zip(self.row_N[pick_N].tolist(), self.frame_N[pick_N].tolist(), strict=True)
        latents = [self.latents(row, frame) for row, frame in rows]
        factor = self.table.folder.height // latents[0].shape[1]
        dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        where_N3 = jitter(cells(self.boxes_NX[pick_N], factor), amount, dice)
        return cut(torch.stack(latents).float(), where_N3, CROP)


@dataclass(frozen=True)
class Pictures:
    """Reference pictures: latents_NCHW of whole ones, and factors_NF, who is on them."""

    latents_NCHW: Tensor
    factors_NF: Tensor

    def crops(self, pick_N: Tensor, amount: float) -> Tensor:
        """These pictures as crops, as identity guidance reads them, with half that jitter."""
        dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        latents_NCHW = self.latents_NCHW[pick_N].float()
        where_N3 = jitter(whole_picture(latents_NCHW), amount / 2, dice)
        return cut(latents_NCHW, where_N3, CROP)


Source = Examples | Pictures


def pictures(folder: ShardFolder, shards: Sequence[int]) -> Pictures:
    """All reference pictures of these shards of a folder (which are on disk)."""
    table = Table(folder, ("refs",))
    table.extend(max(shards) + 1)
    latents: list[Tensor] = []
    factors: list[tuple[int, ...]] = []
    for number in (number for shard in shards for number in folder.seeds(shard)):
        cast = sample_script(number, folder.split)[0].cast
        latents += table.row(number - folder.first)["refs"][: len(cast)]
        factors += [astuple(role.identity) for role in cast]
    return Pictures(torch.stack(latents), torch.tensor(factors))


def visible(folder: ShardFolder, number: int, num_frames: int) -> tuple[Tensor, tuple[Role, ...]]:
    """How much of each character is to be seen in a clip's latent frames, [S, F], and the cast."""
    scene, _, _ = sample_script(number, folder.split)
    visible_ST = torch.from_numpy(scene.visibility(NUM_FRAMES, folder.height, folder.width))
    if folder.still:
        visible_ST = visible_ST[:, [still_moment(number)]]
    return latent_boxes(visible_ST[None, ..., None], num_frames)[0, ..., 0], scene.cast


def examples(folder: ShardFolder, shards: Sequence[int]) -> Examples:
    """Everybody who can be seen in these shards of a folder (which are on disk)."""
    table = Table(folder, ("video",))
    table.extend(max(shards) + 1)
    found: list[tuple[int, int, Tensor, tuple[int, ...]]] = []
    for number in (number for shard in shards for number in folder.seeds(shard)):
        row = number - folder.first
        tensors = table.row(row)
        num_frames = tensors["latents"].shape[1]
        visible_SF, cast = visible(folder, number, num_frames)
        boxes_SFX = latent_boxes(tensors["boxes"][None], num_frames)[0]
        for subject, role in enumerate(cast):
            for frame in (visible_SF[subject] > VISIBLE).nonzero()[:, 0].tolist():
                found.append((row, frame, boxes_SFX[subject, frame], astuple(role.identity)))
    rows, frames, boxes, factors = zip(*found, strict=True)
    return Examples(
        table, torch.tensor(rows), torch.tensor(frames), torch.stack(boxes), torch.tensor(factors)
    )


def worn(crops_NCHW: Tensor, loudest: float = 0.5) -> Tensor:
    """What a generator's guess lacks: half of the crops lose sharpness, most get some noise."""

    def pick(share: float) -> Tensor:
        return (torch.rand(len(crops_NCHW), 1, 1, 1) < share).float()

    loss, loud = (torch.rand(len(crops_NCHW), 1, 1, 1) for _ in range(2))
    blurred = F.avg_pool2d(F.pad(crops_NCHW, (1, 1, 1, 1), "replicate"), 3, 1)
    x = torch.lerp(crops_NCHW, blurred, loss * pick(0.5))
    return x + loudest * loud * pick(0.7) * torch.randn_like(x)


def draw_batch(sources: Sequence[tuple[Source, int]]) -> tuple[Tensor, Tensor]:
    """(crops, factors): so many examples of each source, worn."""
    picks = [(source, torch.randint(len(source.factors_NF), (num,))) for source, num in sources]
    crops = torch.cat([source.crops(pick, 0.08) for source, pick in picks])
    return worn(crops), torch.cat([source.factors_NF[pick] for source, pick in picks])


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """{"loss"}: see `surprise`. A hat that is not there has no colour."""
    crops_NCHW, factors_NF = batch
    return {"loss": surprise(model(crops_NCHW), factors_NF)}


def surprise(read_NV: Tensor, factors_NF: Tensor) -> Tensor:
    """Cross-entropy of readings, nats: summed over the factors, mean over crops."""
    parts = read_NV.split(SIZES, 1)
    losses = [F.cross_entropy(part, factors_NF[:, i]) for i, part in enumerate(parts)]
    return sum(losses, start=torch.zeros(()))


@torch.no_grad()
def examine(model: nn.Module, unseen: Source, num: int = 2000) -> dict[str, float]:
    """Accuracy of each factor where training has not looked, and their mean."""
    model.eval()
    pick_N = torch.from_numpy(np.random.default_rng(0).permutation(len(unseen.factors_NF))[:num])
    read = model(unseen.crops(pick_N, 0.0)).split(SIZES, 1)
    right = [p.argmax(1) == unseen.factors_NF[pick_N, i] for i, p in enumerate(read)]
    told = {name: float(r.float().mean()) for name, r in zip(FACTOR_NAMES, right, strict=True)}
    return told | {"mean": sum(told.values()) / len(told)}


def run_on(stills: ShardFolder, clips: ShardFolder, folder: Path, steps: int = STEPS) -> None:
    """Trains on all shards that are on disk; the last one of clips only examines."""
    num_stills, num_clips = ready(stills, clips)
    known, last = range(num_clips - 1), [num_clips - 1]
    seen: list[tuple[Source, int]] = [
        (examples(stills, range(num_stills)), 40),
        (examples(clips, known), 120),
        (pictures(clips, known), 32),
    ]
    unseen, strangers = examples(clips, last), pictures(clips, last)

    def look(model: nn.Module) -> dict[str, float]:
        return examine(model, unseen) | {"pictures": examine(model, strangers)["mean"]}

    torch.manual_seed(0)
    latent_dim = unseen.table.row(0)["latents"].shape[0]
    train(
        loop_of("latent_reader", steps),
        LatentReader(latent_dim, CONFIG),
        loss,
        lambda index: draw_batch(seen),
        eval_fn=look,
        export_fn=lambda model, where: save(model, where / FILE),
        folder=folder,
    )


def ready(
    stills: ShardFolder, clips: ShardFolder, columns: Sequence[str] = ("video", "refs")
) -> tuple[int, int]:
    """How many shards of each are on disk, those of clips with these columns.

    Raises FileNotFoundError: too few to learn and to examine.
    """
    num_stills, num_clips = stills.num_ready(("video",)), clips.num_ready(columns)
    if not num_stills or num_clips < 2:
        raise FileNotFoundError(
            f"{stills.path} and {clips.path} hold {num_stills} and {num_clips} shards, at least 1 "
            "and 2 are wanted: run `troupe train miniature_shards` first"
        )
    return num_stills, num_clips


def run() -> None:
    """The recipe `miniature_latent_reader`, on what `miniature_shards` has written."""
    from training import sft_miniature

    stills, clips = sft_miniature.miniature_still().data, sft_miniature.miniature().data
    run_on(stills.folder(), clips.folder(), FOLDER)
