"""How the identity encoder (`engine.identity`) learns who is who.

Trained with the additive angular margin of ArcFace (Deng et al. 2019, arXiv 1801.07698, eq. 3) over
thousands of characters and their near-twins, each seen in many poses, lights, expressions and
backgrounds. It measures only; the generator never sees its gradient in supervised training.

Legend: N crops, C colours (3), H W pixels, D embedding (128), I identities, V views of an identity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from engine.crops import cut, to_unit
from engine.identity import DIM, IdentityEncoder, reference_crops
from training import detector
from training.convnet import loop_of, save
from training.crops import jitter, occlude, wear
from training.gallery import SIZES, SLACK, VIEW, Gallery, load_or_build, many_values
from training.loop import run as train
from training.world import oracle

FOLDER = Path("runs/identity")
NUM_IDENTITIES, NUM_HELD_OUT = 8000, 400
MARGIN, MARGIN_STEPS = 0.25, 200
BATCH = 128


class ArcMargin(nn.Module):
    """ArcFace, eq. 3: cross-entropy of s·cos(θ + m) at the true identity, s·cos θ elsewhere.

    A class's centre is the sum of one learned vector per factor value, not a vector of its own:
    what one character teaches about top hats then serves all who wear one, which is what the
    thousands of classes with a few pictures each could not learn in minutes, and what carries
    over to identities that were never seen.
    """

    values_IV: Tensor

    def __init__(self, factors_IF: Tensor, dim: int = DIM, scale: float = 28.0) -> None:
        super().__init__()
        self.register_buffer("values_IV", many_values(factors_IF), persistent=False)
        self.value_embedding = nn.Parameter(torch.randn(sum(SIZES), dim) / math.sqrt(dim))
        self.scale = scale

    def forward(self, unit_ND: Tensor, labels_N: Tensor, margin: float) -> Tensor:
        """Mean loss over the crops; `margin` in radians (it is warmed up from 0)."""
        centres_ID = F.normalize((self.values_IV @ self.value_embedding).float(), dim=-1)
        cos_NI = unit_ND @ centres_ID.T
        own = cos_NI.gather(1, labels_N[:, None]).float().clamp(-1 + 1e-6, 1 - 1e-6)
        # Beyond π - m the shifted angle would make the loss fall again; the paper's code clips too.
        angle = (own.acos() + margin).clamp_max(math.pi)
        logits = cos_NI.float().scatter(1, labels_N[:, None], angle.cos())
        return F.cross_entropy(self.scale * logits, labels_N)


class Trainer(nn.Module):
    """The encoder and the classes that it is trained against; only the encoder is kept."""

    def __init__(self, factors_IF: Tensor) -> None:
        super().__init__()
        self.encoder = IdentityEncoder()
        self.margin = ArcMargin(factors_IF)


@dataclass(frozen=True)
class Batch:
    """crops_NCHW in [-1, 1], labels_N (identity numbers of the gallery), margin in radians."""

    crops_NCHW: Tensor
    labels_N: Tensor
    margin: float


def draw_crops(gallery: Gallery, who_N: Tensor, *, amount: float, clean: bool = False) -> Tensor:
    """One picture of each: 40 % a reference, 60 % cut from a scene, with the detector's jitter and
    (unless `clean`) with what stands in front of it and what a codec does to it."""
    dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    picture_NHWC = gallery.references_IRHWC[who_N, torch.randint(6, who_N.shape)]
    side = picture_NHWC.shape[2]
    square = torch.tensor([[side / 2, side / 2, float(side)]]).expand(len(who_N), 3)
    portraits = cut(to_unit(picture_NHWC), jitter(square, amount, dice))
    views = draw_views(gallery, who_N, amount)
    crops = torch.where(torch.rand(len(who_N), 1, 1, 1) < 0.4, portraits, views)
    return crops if clean else wear(occlude(crops, dice), dice)


def draw_views(gallery: Gallery, who_N: Tensor, amount: float) -> Tensor:
    """A crop of each out of some scene, jittered."""
    dice = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    view_NHWC = gallery.views_IVHWC[who_N, torch.randint(gallery.views_IVHWC.shape[1], who_N.shape)]
    square = torch.tensor([[VIEW / 2, VIEW / 2, VIEW / SLACK]]).expand(len(who_N), 3)
    return cut(to_unit(view_NHWC), jitter(square, amount, dice))


def draw_batch(gallery: Gallery, index: int, size: int = BATCH) -> Batch:
    """Half the batch are near-twins of the other half: 2i and 2i+1 of the gallery."""
    first = torch.randint(len(gallery.factors_IF), (size // 2,))
    who = torch.cat([first, first ^ 1])
    margin = MARGIN * min(1.0, index / MARGIN_STEPS)
    return Batch(draw_crops(gallery, who, amount=0.07), who, margin)


def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """{"loss"}: ArcFace over all identities of the gallery."""
    assert isinstance(model, Trainer)
    unit = model.encoder(batch.crops_NCHW.to(memory_format=torch.channels_last))
    return {"loss": model.margin(unit, batch.labels_N, batch.margin)}


def separation(own: Tensor, twin: Tensor, other_PI: Tensor) -> dict[str, float]:
    """How well cosines tell identities apart, from P probes.

    own [P]: probe against its own reference; twin [P]: against its near-twin's; other_PI: against
    references of strangers. tar: share of own above the 99th percentile of strangers.
    """
    threshold = other_PI.flatten().quantile(0.99)
    best_other = torch.maximum(other_PI.amax(1), twin)
    return {
        "same": float(own.mean()),
        "same_sd": float(own.std()),
        "other": float(other_PI.mean()),
        "other_sd": float(other_PI.std()),
        "twin": float(twin.mean()),
        "rank1": float((own > best_other).float().mean()),
        "beats_twin": float((own > twin).float().mean()),
        "tar_at_1_far": float((own > threshold).float().mean()),
    }


@torch.no_grad()
def examine(encoder: IdentityEncoder, gallery: Gallery, *, worn: bool = False) -> dict[str, float]:
    """`separation` of one view of each held-out identity from everybody's first reference."""
    torch.manual_seed(0)
    num = len(gallery.factors_IF)
    probes = draw_views(gallery, torch.arange(num), 0.03)
    probes = wear(probes, torch.Generator().manual_seed(0)) if worn else probes
    cos_PI = encoder(probes) @ encoder(reference_crops(gallery.references_IRHWC[:, 0])).T
    rows = torch.arange(num)
    stranger = torch.ones(num, num, dtype=torch.bool)
    stranger[rows, rows] = stranger[rows, rows ^ 1] = False
    others = cos_PI[stranger].view(num, num - 2)
    return separation(cos_PI.diagonal(), cos_PI[rows, rows ^ 1], others)


@torch.no_grad()
def draw_sheet(encoder: IdentityEncoder, gallery: Gallery, path: Path, rows: int = 12) -> None:
    """Rows of: a view, its own reference, then the five references most similar to the view."""
    views = draw_views(gallery, torch.arange(rows), 0.03)
    references = reference_crops(gallery.references_IRHWC[:, 0])
    best = (encoder(views) @ encoder(references).T).topk(5).indices
    lines = [torch.cat([views[i], references[i], *references[best[i]]], -1) for i in range(rows)]
    pixels = ((torch.cat(lines, -2) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(pixels.numpy()).save(path)


def _encoder(model: nn.Module) -> IdentityEncoder:
    assert isinstance(model, Trainer)
    return model.encoder


def train_encoder(gallery: Gallery, held_out: Gallery, steps: int = 400) -> None:
    """Writes identity.safetensors; sheets and curves under encoder/.

    The trunk starts from the oracle's, which saves most of the way; everything after it, and the
    aim, are its own.
    """
    trainer = Trainer(gallery.factors_IF)
    begun = oracle.load_oracle(FOLDER / "oracle.safetensors").factors.trunk
    trainer.encoder.trunk.load_state_dict(begun.state_dict())
    config = loop_of("identity", steps)

    def evaluate(model: nn.Module) -> dict[str, float]:
        worn = examine(_encoder(model), held_out, worn=True)
        return examine(_encoder(model), held_out) | {f"worn_{k}": v for k, v in worn.items()}

    train(
        config,
        trainer,
        loss,
        lambda index: draw_batch(gallery, index),
        sheet_fn=lambda model, path: draw_sheet(_encoder(model), held_out, path),
        eval_fn=evaluate,
        export_fn=lambda model, _: save(_encoder(model), FOLDER / "identity.safetensors"),
        folder=FOLDER / "encoder",
    )


def galleries() -> tuple[Gallery, Gallery]:
    """The pictures to learn from and those of held-out identities; drawn on first use."""
    return (
        load_or_build(FOLDER / "gallery.safetensors", NUM_IDENTITIES, 0),
        load_or_build(FOLDER / "heldout.safetensors", NUM_HELD_OUT, 1, held_out=True),
    )


def run() -> None:
    """The recipe `miniature_identity`: detector, oracle, encoder, each resumable by itself."""
    seen, held_out = galleries()
    detector.train_detector(seen, held_out, FOLDER)
    oracle.train_oracle(seen, held_out, FOLDER)
    train_encoder(seen, held_out)
