"""Where somebody stands in latents: how `engine.reader.Locator` learns it.

As the detector of pictures (`training.detector`: CenterNet, arXiv 1904.07850), but of latents, and
of noisy ones: it is asked about guesses of a clip that is being made. Recipe `miniature_locator`.

Legend: N frames, C latent channels, H W latents, K characters of a frame (4, padded), X box corners
(left, top, right, bottom) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine.detector import decode
from engine.reader import Locator
from training import detector
from training.convnet import loop_of, save
from training.data.shards import ShardFolder, Table
from training.grid import READER_SPACING, packed
from training.latent_reader import CONFIG, ready, visible, worn
from training.loop import run as train
from training.losses import latent_boxes
from training.world.scene import MAX_SUBJECTS

FOLDER = Path("runs/locator")
FILE = "locator.safetensors"
STEPS = 1500
LOUD = 1.5
"""Most noise that is added, in latents' units: who is asked first looks at little else."""

Batch = tuple[Tensor, detector.Targets]


@dataclass(frozen=True)
class Frames:
    """Latent frames of a table: row_N and frame_N say which, boxes_NKX (px) and present_NK who is
    there to be found."""

    table: Table
    row_N: Tensor
    frame_N: Tensor
    boxes_NKX: Tensor
    present_NK: Tensor

    def latents(self, pick_N: Tensor) -> Tensor:
        """Of these frames, [N, C, H, W] fp32."""
        rows = zip(self.row_N[pick_N].tolist(), self.frame_N[pick_N].tolist(), strict=True)
        return torch.stack([self.table.row(r)["latents"][:, f] for r, f in rows]).float()

    def targets(self, pick_N: Tensor) -> detector.Targets:
        """The maps that should be seen in them."""
        folder = self.table.folder
        boxes, present = self.boxes_NKX[pick_N], self.present_NK[pick_N]
        return detector.targets(boxes, present, folder.height, folder.width)


def frames(folder: ShardFolder, shards: Sequence[int]) -> Frames:
    """All latent frames of these shards of a folder (which are on disk)."""
    table = Table(folder, ("video",))
    table.extend(max(shards) + 1)
    rows: list[int] = []
    numbers: list[int] = []
    boxes: list[Tensor] = []
    present: list[Tensor] = []
    for number in (number for shard in shards for number in folder.seeds(shard)):
        row = number - folder.first
        tensors = table.row(row)
        num_frames = tensors["latents"].shape[1]
        visible_SF, cast = visible(folder, number, num_frames)
        boxes_SFX = latent_boxes(tensors["boxes"][None].float(), num_frames)[0]
        padded = torch.zeros(num_frames, MAX_SUBJECTS, 4)
        padded[:, : len(cast)] = boxes_SFX[: len(cast)].transpose(0, 1)
        seen = torch.zeros(num_frames, MAX_SUBJECTS, dtype=torch.bool)
        seen[:, : len(cast)] = visible_SF.T > detector.SEEN
        rows += [row] * num_frames
        numbers += range(num_frames)
        boxes.append(padded)
        present.append(seen)
    where = (torch.tensor(rows), torch.tensor(numbers))
    return Frames(table, *where, torch.cat(boxes), torch.cat(present))


def draw_batch(sources: Sequence[tuple[Frames, int]]) -> Batch:
    """(latents [N, C, H, W], what should be seen): so many frames of each source, worn."""
    picks = [(source, torch.randint(len(source.row_N), (num,))) for source, num in sources]
    parts = [source.targets(pick) for source, pick in picks]
    want = detector.Targets(
        *(torch.cat(maps) for maps in zip(*(vars(part).values() for part in parts), strict=True))
    )
    return worn(torch.cat([source.latents(pick) for source, pick in picks]), LOUD), want


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """As the detector's."""
    latents_NCHW, want = batch
    return detector.loss(model(latents_NCHW), want)


@torch.no_grad()
def examine(model: nn.Module, unseen: Frames, num: int = 1000) -> dict[str, float]:
    """Recall at IoU .5 and precision on clips that training did not use, as they are and under
    noise of size 1."""
    model.eval()
    pick_N = torch.from_numpy(np.random.default_rng(0).permutation(len(unseen.row_N))[:num])
    latents, wanted_NK = unseen.latents(pick_N), unseen.present_NK[pick_N]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    told = {}
    for name, loud in (("", 0.0), ("_noisy", 1.0)):
        found = decode(model(latents + loud * noise))
        real_ND = found.score_NK > 0
        iou_NDK = detector.overlap(found.boxes_NKS, unseen.boxes_NKX[pick_N])
        iou_NDK = iou_NDK * real_ND[..., None] * wanted_NK[:, None]
        told[f"recall{name}"] = float((iou_NDK.amax(1)[wanted_NK] > 0.5).float().mean())
        right_N = iou_NDK.amax(2)[real_ND] > 0.3
        told[f"precision{name}"] = float(right_N.sum()) / max(1, len(right_N))
    return told


def run_on(stills: ShardFolder, clips: ShardFolder, folder: Path, steps: int = STEPS) -> None:
    """Trains on all shards that are on disk; the last one of clips only examines."""
    num_stills, num_clips = ready(stills, clips)
    seen = [(frames(stills, range(num_stills)), 24), (frames(clips, range(num_clips - 1)), 72)]
    unseen = frames(clips, [num_clips - 1])

    def look(model: nn.Module) -> dict[str, float]:
        with packed(model, READER_SPACING):
            return examine(model, unseen)

    torch.manual_seed(0)
    train(
        loop_of("locator", steps),
        Locator(unseen.latents(torch.tensor([0])).shape[1], CONFIG),
        loss,
        lambda index: draw_batch(seen),
        eval_fn=look,
        export_fn=lambda model, where: save(model, where / FILE),
        folder=folder,
        around=partial(packed, spacing=READER_SPACING),
    )


def run() -> None:
    """The recipe `miniature_locator`, on what `miniature_shards` has written."""
    from training import sft_miniature

    stills, clips = sft_miniature.miniature_still().data, sft_miniature.miniature().data
    run_on(stills.folder(), clips.folder(), FOLDER)
