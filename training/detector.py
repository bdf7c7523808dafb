"""How the detector (`engine.detector`) learns where characters stand in a frame.

As CenterNet (Zhou et al. 2019, arXiv 1904.07850): a heatmap of centres with the penalty-reduced
focal loss of eq. 1 and, at each centre, the offset in the cell and the log size.

Legend: N frames, H W pixels, h w cells of 4 pixels, K objects of a frame, S=4 box corners (pixels).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

from engine.crops import to_unit
from engine.detector import STRIDE, Detector, detect
from training.convnet import loop_of, save
from training.crops import wear
from training.gallery import HEIGHT, WIDTH, Gallery
from training.loop import run as train
from training.world.backgrounds import paint_background

SEEN = 0.35
"""Visible share of a body above which it has to be found."""
EMPTY = 0.06


@dataclass(frozen=True)
class Targets:
    """What the maps should be. heat_Nhw in [0, 1], 1 at centres; maps_N4hw offset and log size;
    centre_Nhw true where a centre is."""

    heat_Nhw: Tensor
    maps_N4hw: Tensor
    centre_Nhw: Tensor


def targets(boxes_NKS: Tensor, present_NK: Tensor, height: int, width: int) -> Targets:
    """Gaussian bumps (σ = a tenth of the box's mean side, at least 0.6 cells) around the centres of
    the boxes that are present; of two objects in one cell the later wins."""
    h, w, count = height // STRIDE, width // STRIDE, boxes_NKS.shape[1]
    boxes = boxes_NKS.float() / STRIDE
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    size = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0.25)
    cell = centre.floor().long().clamp_min(0)
    cell = torch.minimum(cell, torch.tensor([w - 1, h - 1]))
    values = torch.cat([centre - cell - 0.5, size.log()], -1)
    heat = torch.zeros(len(boxes), h, w)
    maps = torch.zeros(len(boxes), 4, h, w)
    mask = torch.zeros(len(boxes), h, w, dtype=torch.bool)
    ys, xs = torch.arange(h).view(1, -1, 1), torch.arange(w).view(1, 1, -1)
    for k in range(count):
        rows = present_NK[:, k].nonzero()[:, 0]
        x, y = cell[rows, k].unbind(-1)
        sigma = (size[rows, k].mean(-1) * 0.1).clamp_min(0.6).view(-1, 1, 1)
        away = (xs - x.view(-1, 1, 1)) ** 2 + (ys - y.view(-1, 1, 1)) ** 2
        heat[rows] = torch.maximum(heat[rows], torch.exp(-away / (2 * sigma**2)))
        maps[rows, :, y, x] = values[rows, k]
        mask[rows, y, x] = True
    return Targets(heat, maps, mask)


def loss(maps_N5hw: Tensor, want: Targets) -> dict[str, Tensor]:
    """{"loss", "heat", "box"}: focal loss per object (powers 2 and 4) + smooth L1 at centres."""
    logit, p = maps_N5hw[:, 0], maps_N5hw[:, 0].sigmoid()
    objects = want.centre_Nhw.sum().clamp_min(1)
    hit = F.logsigmoid(logit) * (1 - p) ** 2
    miss = F.logsigmoid(-logit) * p**2 * (1 - want.heat_Nhw) ** 4
    heat = -torch.where(want.centre_Nhw, hit, miss).sum() / objects
    off = F.smooth_l1_loss(maps_N5hw[:, 1:], want.maps_N4hw, reduction="none", beta=0.1).sum(1)
    box = (off * want.centre_Nhw).sum() / objects
    return {"loss": heat + box, "heat": heat.detach(), "box": box.detach()}


def overlap(a_KS: Tensor, b_LS: Tensor) -> Tensor:
    """Intersection over union of every box of a with every box of b: [..., K, L]."""
    a, b = a_KS[..., :, None, :], b_LS[..., None, :, :]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inner = (high - low).clamp_min(0).prod(-1)
    area = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1)
    return inner / (area - inner).clamp_min(1e-6)


@dataclass(frozen=True)
class Batch:
    """frames_NCHW in [-1, 1], boxes_NKS in pixels, present_NK bool."""

    frames_NCHW: Tensor
    boxes_NKS: Tensor
    present_NK: Tensor


def draw_batch(gallery: Gallery, size: int = 64) -> Batch:
    """Frames of scenes, half of them mirrored, worn like generated ones; a few without anybody."""
    dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    num_scenes, num_frames = gallery.frames_MTHWC.shape[:2]
    scene, moment = torch.randint(num_scenes, (size,)), torch.randint(num_frames, (size,))
    frames = to_unit(gallery.frames_MTHWC[scene, moment])
    boxes = gallery.boxes_MTKS[scene, moment].clone()
    present = gallery.visibility_MTK[scene, moment] > SEEN
    mirrored = torch.rand(size) < 0.5
    frames[mirrored] = frames[mirrored].flip(-1)
    boxes[mirrored] = torch.stack(
        [
            WIDTH - boxes[mirrored, :, 2],
            boxes[mirrored, :, 1],
            WIDTH - boxes[mirrored, :, 0],
            boxes[mirrored, :, 3],
        ],
        -1,
    )
    for i in (torch.rand(size) < EMPTY).nonzero()[:, 0].tolist():
        frames[i], present[i] = _nobody(dice), False
    return Batch(wear(frames, dice), boxes, present)


def _nobody(dice: torch.Generator) -> Tensor:
    """An empty stage, one colour, or coarse noise: what must not be taken for a character."""
    kind, background, light, seed = torch.randint(2**20, (4,), generator=dice).tolist()
    if kind % 2:
        return paint_background(background % 8, light % 3, seed, HEIGHT, WIDTH) * 2 - 1
    flat = torch.rand(3, 1, 1, generator=dice).expand(3, HEIGHT, WIDTH) * 2 - 1
    coarse = torch.randn(1, 3, 8 << kind % 3, 12 << kind % 3, generator=dice) * 0.4
    noise = F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear")[0]
    return (flat + noise * (kind % 4 > 1)).clamp(-1, 1)


def train_loss(net: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The loss of a batch, with the maps that it should have given."""
    want = targets(batch.boxes_NKS, batch.present_NK, *batch.frames_NCHW.shape[-2:])
    return loss(net(batch.frames_NCHW.to(memory_format=torch.channels_last)), want)


def examine(net: Detector, gallery: Gallery, *, worn: bool = False) -> dict[str, float]:
    """Recall at IoU .5, precision and the median and 98th percentile of the centre error (pixels)
    over all frames of a gallery; recall also by the number of characters of the scene."""
    frames = gallery.frames_MTHWC.flatten(0, 1)
    if worn:
        pixels = wear(to_unit(frames), torch.Generator().manual_seed(0))
        frames = ((pixels + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    found = detect(net, frames)
    boxes = gallery.boxes_MTKS.flatten(0, 1)
    seen = gallery.visibility_MTK.flatten(0, 1)
    iou_NDK = overlap(found.boxes_NKS, boxes) * (found.score_NK > 0)[..., None]
    best_NK, which_NK = iou_NDK.max(1)
    wanted, hit = seen > SEEN, best_NK > 0.5
    nearest = found.boxes_NKS.gather(1, which_NK[..., None].expand(-1, -1, 4))
    away = ((nearest - boxes)[..., :2] + (nearest - boxes)[..., 2:]).norm(dim=-1) / 2
    error = away[wanted & hit] if bool((wanted & hit).any()) else torch.tensor([float("inf")])
    real = (iou_NDK * (seen > 0.05)[:, None]).amax(2) > 0.3
    result = {
        "recall": float(hit[wanted].float().mean()),
        "precision": float(real[found.score_NK > 0].float().mean()),
        "centre_px": float(error.median()),
        "centre_px_98": float(error.quantile(0.98)),
    }
    cast = (boxes[..., 2] > boxes[..., 0]).sum(1, keepdim=True).expand_as(wanted)
    for k in range(1, 5):
        result[f"recall_{k}"] = float(hit[wanted & (cast == k)].float().mean())
    overlapped = wanted & (seen < 0.8)
    return result | {"recall_overlapped": float(hit[overlapped].float().mean())}


def draw_sheet(net: Detector, gallery: Gallery, path: Path) -> None:
    """Thirty frames of held-out scenes with the boxes that were found, four times as large."""
    frames = gallery.frames_MTHWC[:30, 0]
    found = detect(net, frames)
    sheet = Image.new("RGB", (6 * WIDTH * 3, 5 * HEIGHT * 3))
    for i, frame in enumerate(frames.numpy()):
        picture = Image.fromarray(frame).resize((WIDTH * 3, HEIGHT * 3))
        pen = ImageDraw.Draw(picture)
        for box, score in zip(found.boxes_NKS[i] * 3, found.score_NK[i], strict=True):
            if score > 0:
                pen.rectangle(box.tolist(), outline=(255, 0, 255))
                pen.text((float(box[0]) + 2, float(box[1]) + 1), f"{float(score):.2f}")
        sheet.paste(picture, (i % 6 * WIDTH * 3, i // 6 * HEIGHT * 3))
    sheet.save(path)


def train_detector(gallery: Gallery, held_out: Gallery, folder: Path, steps: int = 240) -> None:
    """Writes folder/detector.safetensors; sheets and curves under folder/detector/."""
    config = loop_of("detector", steps)

    def evaluate(model: nn.Module) -> dict[str, float]:
        worn = examine(model, held_out, worn=True)  # type: ignore[arg-type]
        return examine(model, held_out) | {"worn_recall": worn["recall"]}  # type: ignore[arg-type]

    train(
        config,
        Detector(),
        train_loss,
        lambda _: draw_batch(gallery),
        sheet_fn=lambda model, path: draw_sheet(model, held_out, path),  # type: ignore[arg-type]
        eval_fn=evaluate,
        export_fn=lambda model, _: save(model, folder / "detector.safetensors"),
        folder=folder / "detector",
    )
