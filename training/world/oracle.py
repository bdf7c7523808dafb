"""The oracle: reads the true factors back out of pictures of the world. For evaluation only.

Three readings. What a character is: a convnet with one head per factor, weights of its own, so that
its verdict does not lean on the identity encoder's. Where it plays: a second one for background and
light. What it does: geometry of its boxes and tilt over the frames, no learning.

Legend: N crops or frames, F factors (10), V factor values in a row (88), S subjects, T frames,
C colours, H W pixels. Boxes are left, top, right, bottom in pixels; NaN where nobody was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from engine.convnet import ResidualBlock, Trunk, load
from engine.crops import CROP, cut, to_unit
from training.convnet import loop_of, save
from training.crops import jitter, occlude, wear
from training.gallery import SIZES, SLACK, VIEW, Gallery
from training.loop import run as train
from training.world.identity import FACTOR_NAMES, Identity
from training.world.scene import BACKGROUNDS, LIGHTS, MOTIONS

BATCH = 128


class FactorReader(nn.Module):
    """Crops [N, 3, 48, 48] in [-1, 1] -> logits [N, 88] of all factor values in a row, and the
    cosine and sine of the body's tilt [N, 2] (not normalised)."""

    def __init__(self, widths: tuple[int, ...] = (48, 96, 192)) -> None:
        super().__init__()
        self.trunk = Trunk(widths)
        self.squeeze = nn.Conv2d(widths[-1], 64, 1)
        self.hidden = nn.Linear(64 * 36, 256)
        self.head = nn.Linear(256, sum(SIZES) + 2)

    def forward(self, crops_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        h = F.silu(self.hidden(self.squeeze(self.trunk(crops_NCHW)).flatten(1)))
        out = self.head(h).float()
        return out[:, :-2], out[:, -2:]


class PlaceReader(nn.Module):
    """Frames [N, 3, H, W] -> logits of the background [N, 8] and of the light [N, 3]."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, widths[0], 3, 1, 1),
            ResidualBlock(widths[0], widths[1], 2),
            ResidualBlock(widths[1], widths[2], 2),
            nn.BatchNorm2d(widths[2]),
            nn.SiLU(),
        )
        self.head = nn.Linear(2 * widths[2], len(BACKGROUNDS) + len(LIGHTS))

    def forward(self, frames_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(frames_NCHW)
        out = self.head(torch.cat([h.mean((2, 3)), h.amax((2, 3))], 1)).float()
        return out[:, : len(BACKGROUNDS)], out[:, len(BACKGROUNDS) :]


class Oracle(nn.Module):
    """Both readers, one file."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = FactorReader()
        self.place = PlaceReader()


@dataclass(frozen=True)
class Reading:
    """Of N crops: logits_NV of all factor values, tilt_N in radians."""

    logits_NV: Tensor
    tilt_N: Tensor


@torch.no_grad()
def read(oracle: Oracle, crops_NCHW: Tensor) -> Reading:
    """Looks at crops of one character each."""
    logits, turn = oracle.factors(crops_NCHW.contiguous(memory_format=torch.channels_last))
    return Reading(logits, torch.atan2(turn[:, 1], turn[:, 0]))


@torch.no_grad()
def read_place(oracle: Oracle, frames_NHWC: Tensor) -> tuple[int, int]:
    """uint8 frames of one clip -> (background, light), by the mean vote of its frames."""
    background, light = oracle.place(to_unit(frames_NHWC))
    return int(background.softmax(-1).mean(0).argmax()), int(light.softmax(-1).mean(0).argmax())


def decide(logits_V: Tensor) -> Identity:
    """The likeliest value of every factor; sum logits over several crops to let them vote."""
    return Identity(*(int(part.argmax()) for part in logits_V.split(SIZES)))


def agreement(seen: Identity, true: Identity) -> dict[str, bool]:
    """Factor -> was it read right. Colours of a hat or accessory that the truth does not have
    are left out: they cannot be seen."""
    hidden = {c for c in ("hat", "accessory") if getattr(true, c) == 0}
    return {
        name: getattr(seen, name) == getattr(true, name)
        for name in FACTOR_NAMES
        if name.removesuffix("_color") not in hidden or name in ("hat", "accessory")
    }


# --- motion ------------------------------------------------------------------------------------

SPIN_RESULTANT = 0.6
SWAP_NEAR, SWAP_FAR = 0.16, 0.25
GROWTH = 0.25
HOP = 0.075
WALK = 0.16
"""Thresholds, in frame heights but for the resultant of the tilts and the log growth; between the
programs of `scene` (walks cross 0.32 to 0.48, hops 0.14 to 0.22, growth log 1.76, spins a full
turn) and the noise of a detector."""


@dataclass(frozen=True)
class Track:
    """One character over the frames: boxes_TS pixels (NaN where lost), tilt_T radians."""

    boxes_TS: np.ndarray
    tilt_T: np.ndarray

    def found(self) -> np.ndarray:
        """Frames in which it was seen, bool [T]."""
        return np.isfinite(self.boxes_TS[:, 0])


def motions(tracks: list[Track], height: int = 64) -> list[int]:
    """Index into MOTIONS for each track of a clip; -1 where it was seen in fewer than 4 frames."""
    lines = [_line(track, height) if track.found().sum() >= 4 else None for track in tracks]
    return [_motion(track, k, lines, height) for k, track in enumerate(tracks)]


def _motion(track: Track, k: int, lines: list[tuple[float, float] | None], height: int) -> int:
    line = lines[k]
    if line is None:
        return -1
    seen = track.found()
    tilt = track.tilt_T[seen]
    if np.hypot(np.cos(tilt).mean(), np.sin(tilt).mean()) < SPIN_RESULTANT:
        return MOTIONS.index("spins")
    if any(_exchanged(line, other) for j, other in enumerate(lines) if j != k and other):
        return MOTIONS.index("swaps")
    if _growth(track) > GROWTH:
        return MOTIONS.index("comes closer")
    if _hop(track) / height > HOP:
        return MOTIONS.index("bounces")
    across = line[1] - line[0]
    if abs(across) > WALK:
        return MOTIONS.index("walks right" if across > 0 else "walks left")
    return MOTIONS.index("stands")


def _times(track: Track) -> tuple[np.ndarray, np.ndarray]:
    seen = track.found()
    return np.linspace(-0.5, 0.5, len(seen))[seen], track.boxes_TS[seen]


def _line(track: Track, height: int) -> tuple[float, float]:
    """Where it starts and where it ends, by a cubic through its centres (frame heights)."""
    s, boxes = _times(track)
    x = (boxes[:, 0] + boxes[:, 2]) / 2 / height
    start, end = np.polyval(np.polyfit(s, x, min(3, len(s) - 1)), (s[0], s[-1]))
    return float(start), float(end)


def _exchanged(a: tuple[float, float], b: tuple[float, float]) -> bool:
    """Each ends where the other one began, and that is not where it began itself."""
    met = abs(a[1] - b[0]) < SWAP_NEAR and abs(b[1] - a[0]) < SWAP_NEAR
    return met and min(abs(a[1] - a[0]), abs(b[1] - b[0])) > SWAP_FAR


def _growth(track: Track) -> float:
    """Log of how much taller it is at the end than at the start, by a straight line."""
    s, boxes = _times(track)
    return float(np.polyfit(s, np.log(np.maximum(boxes[:, 3] - boxes[:, 1], 1.0)), 1)[0])


def _hop(track: Track) -> float:
    """How far its feet leave a straight line, pixels between the 10th and 90th percentile."""
    s, boxes = _times(track)
    rest = boxes[:, 3] - np.polyval(np.polyfit(s, boxes[:, 3], 1), s)
    return float(np.percentile(rest, 90) - np.percentile(rest, 10))


# --- training ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """crops_NCHW with factors_NF and tilt_N; frames_NCHW with background_N and light_N."""

    crops_NCHW: Tensor
    factors_NF: Tensor
    tilt_N: Tensor
    frames_NCHW: Tensor
    background_N: Tensor
    light_N: Tensor


def draw_batch(gallery: Gallery, size: int = BATCH) -> Batch:
    """Four crops (a third of them references) to each frame, worn like generated ones."""
    dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    who = torch.randint(len(gallery.factors_IF), (size,))
    portraits, tilt_a = _portraits(gallery, who[: size // 3], dice)
    views, tilt_b = _views(gallery, who[size // 3 :], dice)
    crops = wear(occlude(torch.cat([portraits, views]), dice, 0.15), dice)
    scene = torch.randint(len(gallery.frames_MTHWC), (size // 4,))
    moment = torch.randint(gallery.frames_MTHWC.shape[1], (size // 4,))
    frames = wear(to_unit(gallery.frames_MTHWC[scene, moment]), dice)
    return Batch(
        crops,
        gallery.factors_IF[who].long(),
        torch.cat([tilt_a, tilt_b]),
        frames,
        gallery.background_M[scene].long(),
        gallery.light_M[scene].long(),
    )


def _portraits(gallery: Gallery, who_N: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.randint(gallery.references_IRHWC.shape[1], who_N.shape, generator=dice)
    square = torch.tensor([[32.0, 32.0, 64.0]]).expand(len(who_N), 3)
    pictures = to_unit(gallery.references_IRHWC[who_N, which])
    return cut(pictures, jitter(square, 0.06, dice), CROP), gallery.tilt_IR[who_N, which]


def _views(gallery: Gallery, who_N: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    which = torch.randint(gallery.views_IVHWC.shape[1], who_N.shape, generator=dice)
    square = torch.tensor([[VIEW / 2, VIEW / 2, VIEW / SLACK]]).expand(len(who_N), 3)
    pictures = to_unit(gallery.views_IVHWC[who_N, which])
    return cut(pictures, jitter(square, 0.06, dice), CROP), gallery.view_tilt_IV[who_N, which]


def loss(oracle: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy of every factor that can be seen, the tilt's squared error, and the place."""
    assert isinstance(oracle, Oracle)
    logits, turn = oracle.factors(batch.crops_NCHW.to(memory_format=torch.channels_last))
    want = batch.factors_NF.clone()
    for item in ("hat", "accessory"):
        absent = want[:, FACTOR_NAMES.index(item)] == 0
        want[absent, FACTOR_NAMES.index(f"{item}_color")] = -100
    parts = logits.split(SIZES, dim=1)
    factor = torch.stack([F.cross_entropy(p, want[:, i]) for i, p in enumerate(parts)]).sum()
    goal = torch.stack([batch.tilt_N.cos(), batch.tilt_N.sin()], -1)
    tilt = F.mse_loss(turn, goal)
    background, light = oracle.place(batch.frames_NCHW.to(memory_format=torch.channels_last))
    place = F.cross_entropy(background, batch.background_N) + F.cross_entropy(light, batch.light_N)
    total = factor + 2 * tilt + place
    return {"loss": total} | {
        "factor": factor.detach(),
        "tilt": tilt.detach(),
        "place": place.detach(),
    }


def examine(oracle: Oracle, gallery: Gallery) -> dict[str, float]:
    """Accuracy of each factor on one reference (ref_*) and one view (clip_*) of each held-out
    identity, of background and light on single frames; the tilt's median error (degrees)."""
    dice = torch.Generator().manual_seed(0)
    who = torch.arange(len(gallery.factors_IF))
    result = {}
    for kind, draw in (("ref", _portraits), ("clip", _views)):
        crops, tilt = draw(gallery, who, dice)
        reading = read(oracle, crops)
        truth = [Identity(*row) for row in gallery.factors_IF.tolist()]
        rows = [agreement(decide(x), y) for x, y in zip(reading.logits_NV, truth, strict=True)]
        for name in FACTOR_NAMES:
            told = [row[name] for row in rows if name in row]
            result[f"{kind}_{name}"] = sum(told) / len(told)
        mean = sum(result[f"{kind}_{n}"] for n in FACTOR_NAMES) / len(FACTOR_NAMES)
        result[f"{kind}_mean"] = mean
        error = torch.remainder(reading.tilt_N - tilt + torch.pi, 2 * torch.pi) - torch.pi
        result[f"{kind}_tilt_deg"] = float(error.abs().median().rad2deg())
    with torch.no_grad():
        background, light = oracle.place(to_unit(gallery.frames_MTHWC[:, 0]))
    result["background"] = float((background.argmax(1) == gallery.background_M).float().mean())
    result["light"] = float((light.argmax(1) == gallery.light_M).float().mean())
    return result


def draw_sheet(oracle: Oracle, gallery: Gallery, path: Path, num: int = 12) -> None:
    """Views of held-out identities, each beside a portrait of the identity that was read."""
    from training.world.render import render_reference

    crops, _ = _views(gallery, torch.arange(num), torch.Generator().manual_seed(0))
    reading = read(oracle, crops)
    rng = np.random.default_rng(0)
    pairs = []
    for crop, logits in zip(crops, reading.logits_NV, strict=True):
        read_as = render_reference(decide(logits), rng, CROP)
        pixels = ((crop + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
        pairs.append(np.concatenate([pixels, read_as], 1))
    rows = [np.concatenate(pairs[i : i + 4], 1) for i in range(0, num, 4)]
    Image.fromarray(np.concatenate(rows)).resize((8 * CROP * 2, num // 4 * CROP * 2)).save(path)


def load_oracle(path: Path) -> Oracle:
    """The oracle of a file written by the recipe, ready to read."""
    return load(Oracle(), path)


def train_oracle(gallery: Gallery, held_out: Gallery, folder: Path, steps: int = 560) -> None:
    """Writes folder/oracle.safetensors; sheets and curves under folder/oracle/."""
    config = loop_of("oracle", steps)
    train(
        config,
        Oracle(),
        loss,
        lambda _: draw_batch(gallery),
        sheet_fn=lambda model, path: draw_sheet(model, held_out, path),  # type: ignore[arg-type]
        eval_fn=lambda model: examine(model, held_out),  # type: ignore[arg-type]
        export_fn=lambda model, _: save(model, folder / "oracle.safetensors"),
        folder=folder / "oracle",
    )
