"""Scorers for photographs behind the same door: each is loaded from weights that the user has.

    face          ArcFace (insightface's FaceAnalysis: detector and embedding), per reference
    subject       CLIP's cosine between a reference and the frame, in place of NexusScore
    aesthetics    a linear head or MLP on CLIP's image embedding (LAION's predictor, 1 to 10)
    naturalness   the model folder's own Qwen2.5-VL, asked for a mark from 1 to 5

Legend: B rollouts, F frames of one, N pictures, D embedding, S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from engine.encodings import letterbox
from engine.vlm import VLM, content, conversation
from training.policy import Task
from training.rewards.composite import Composite, faces, unit
from training.rewards.door import RewardError

Pixels = NDArray[np.uint8]
OBSERVED = 5  # frames of a clip, evenly spread, as Identity-GRPO's reward model takes
MARKS = ("1", "2", "3", "4", "5")
QUESTION = (
    "Judge this video on how natural it looks: do bodies, motions and light follow physics and"
    " common sense? Answer with one mark from 1 (very unnatural) to 5 (natural)."
)
AESTHETIC = (1.0, 10.0)  # the range of LAION's marks
ALIKE = (0.5, 1.0)
"""CLIP's cosines of two pictures: unrelated ones have about .5."""


class FaceFinder(Protocol):
    """Who can tell faces."""

    def embeddings(self, picture: Pixels) -> Tensor:
        """Unit vectors [N, D] of the faces in an RGB picture, N may be 0."""
        ...


class ArcFace:
    """insightface's FaceAnalysis over ROOT/models/NAME with its .onnx files (such as buffalo_l).

    Raises:
        RewardError: the extra is not installed, or the folder is not there.
    """

    def __init__(self, folder: Path, size: int = 640) -> None:
        try:
            analysis = import_module("insightface.app").FaceAnalysis
        except ImportError as error:
            raise RewardError(
                'faces: needs insightface and onnxruntime: pip install -e ".[reward]"'
            ) from error
        if not any(folder.glob("*.onnx")):
            raise RewardError(f"faces: there are no .onnx files in {folder}")
        # insightface looks in ROOT/models/NAME and downloads only what is not there.
        root, name = folder.parent.parent, folder.name
        parts = ["detection", "recognition"]
        self.app: Any = analysis(name=name, root=str(root), allowed_modules=parts)
        self.app.prepare(ctx_id=0, det_size=(size, size))

    def embeddings(self, picture: Pixels) -> Tensor:
        """See `FaceFinder`."""
        found = [face.normed_embedding for face in self.app.get(picture[..., ::-1])]
        return torch.from_numpy(np.stack(found)) if found else torch.zeros(0, 512)


@dataclass(frozen=True)
class Clip:
    """CLIP's image half, and a head of aesthetics on its unit embedding (`head(x) -> [N, 1]`)."""

    model: CLIPVisionModelWithProjection
    processor: CLIPImageProcessor
    head: nn.Module

    @classmethod
    def load(cls, folder: Path) -> Clip:
        """From a CLIP folder in transformers' form with `aesthetic.safetensors` beside it.

        Raises:
            RewardError: a file is missing; the message names it.
        """
        head = folder / "aesthetic.safetensors"
        for path in (folder / "config.json", folder / "model.safetensors", head):
            if not path.exists():
                raise RewardError(f"aesthetics: {path} is missing")
        model = CLIPVisionModelWithProjection.from_pretrained(folder, use_safetensors=True).eval()
        return cls(model, CLIPImageProcessor.from_pretrained(folder), aesthetic_head(head))

    @torch.no_grad()
    def embeddings(self, pictures: Sequence[Pixels]) -> Tensor:
        """Unit vectors [N, D]."""
        inputs = self.processor(images=list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device)
        return F.normalize(self.model(pixel_values=pixels).image_embeds.float(), dim=1)

    @torch.no_grad()
    def aesthetics(self, embedded_ND: Tensor) -> Tensor:
        """In [0, 1], fp64 [N]."""
        return unit(self.head(embedded_ND)[:, 0], *AESTHETIC)


def aesthetic_head(path: Path) -> nn.Sequential:
    """Linear layers in order, as LAION's predictors are: `layers.N.weight` and `.bias`, nothing
    between them in inference (their activations were left out, dropout is off)."""
    tensors = load_file(path)
    numbers = sorted({int(name.split(".")[1]) for name in tensors})
    layers = []
    for number in numbers:
        weight = tensors[f"layers.{number}.weight"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": tensors[f"layers.{number}.bias"]})
        layers.append(layer)
    return nn.Sequential(*layers).eval()


@torch.no_grad()
def mark(vlm: VLM, frames: Sequence[Pixels], prompt: str) -> float:
    """The mark that a VLM expects to give, in [0, 1]: the mean of 1 to 5 under its probabilities.

    Raises:
        RewardError: its tokenizer has no digits.
    """
    ids = [vlm.tokenizer.encode(m, add_special_tokens=False).ids for m in MARKS]
    if any(len(own) != 1 for own in ids) or len({own[0] for own in ids}) < len(MARKS):
        raise RewardError("naturalness: this VLM's tokenizer has no marks from 1 to 5")
    turn = conversation(content(prompt, (), len(frames), QUESTION))
    inputs = vlm.processor(text=[turn], images=list(frames), return_tensors="pt")
    logits = vlm.model(**inputs.to(vlm.model.device)).logits[0, -1]
    weights = logits[[own[0] for own in ids]].double().softmax(0)
    return float(unit((weights * torch.arange(1, 6).to(weights)).sum(), 1, 5))


@dataclass(frozen=True)
class Photo:
    """ID-Crafter's composite reward (equations 5 to 8) of photographs. Subjects whose pictures have
    no face count in the subject score alone; where nobody has one it stands for the faces too.

    Raises:
        RewardError: the composite weighs naturalness, and there is nobody to tell it.
    """

    finder: FaceFinder
    clip: Clip
    vlm: VLM | None = None
    composite: Composite = field(default_factory=Composite)

    def __post_init__(self) -> None:
        if self.composite.weighs_naturalness and self.vlm is None:
            raise RewardError("naturalness: has weight in the composite, and there is no VLM")

    def __call__(self, frames_BFHWC: Tensor, samples: Sequence[Task]) -> dict[str, Tensor]:
        rows = [self._row(f.numpy(), task) for f, task in zip(frames_BFHWC, samples, strict=True)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _row(self, clip: Pixels, task: Task) -> dict[str, Tensor]:
        num = len(clip)
        moments = np.linspace(0, num - 1, min(num, OBSERVED)).round().astype(int)
        frames = [clip[t] for t in moments]
        pictures = [np.asarray(reference.to_image()) for reference in task.references]
        height, width = clip.shape[1:3]
        fitted = [np.asarray(letterbox(r.to_image(), width, height)) for r in task.references]
        seen_FD, asked_SD = self.clip.embeddings(frames), self.clip.embeddings(fitted)
        alike_1 = unit((asked_SD @ seen_FD.T).mean()[None], *ALIKE)
        told = [self._face(p, frames) for p in pictures]
        shown = [cosine for cosine in told if cosine is not None]
        face_1S = faces(torch.tensor([shown], dtype=torch.float64)) if shown else alike_1[:, None]
        natural = 0.0 if self.vlm is None else mark(self.vlm, frames, task.spec.prompt)
        natural_1 = torch.tensor([natural], dtype=torch.float64)
        clean_1 = self.clip.aesthetics(seen_FD).mean()[None]
        return self.composite(face_1S, alike_1, clean_1, natural_1)

    def _face(self, picture: Pixels, frames: Sequence[Pixels]) -> float | None:
        """Cosine of a reference's face to the likest one of each frame, mean over frames; a frame
        without a face counts 0. None for a reference without one: a dog, a car."""
        own_ND = self.finder.embeddings(picture)
        if len(own_ND) == 0:
            return None
        best = [self.finder.embeddings(frame) @ own_ND[0] for frame in frames]
        found = [float(cosine_N.max()) if len(cosine_N) else 0.0 for cosine_N in best]
        return float(np.mean(found))
