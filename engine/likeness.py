"""Is it them? What a finished video shows of its subjects, told without a script.

    frames, References ─ Judge.score ─▶ Likeness

`load_judge` gives the judge that a model folder brings: for the miniature a detector and an
identity encoder, whose figures `bench.likeness` holds against those that know the script. A folder
without them has none. Other kinds of models will bring another judge behind the same door.

Legend: T observed frames, D detections of a frame, S subjects, P pictures of one, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from engine import folders
from engine.detector import Detector, find, load_detector
from engine.encodings import letterbox
from engine.identity import IdentityEncoder, embed, load_identity, reference_crops
from engine.matching import (
    NOBODY,
    SMOOTH,
    Bools,
    Floats,
    Seen,
    along,
    centres,
    copy_paste,
    matched,
)
from engine.spec import Reference

FILES = ("detector.safetensors", "identity.safetensors")
GATE = 0.3
"""A match counts from this cosine on: in true clips 5 % of frames with one stranger reach it, and
14 % with three, who have the best of six ways to match."""
OBSERVED = 9
"""So many frames are looked at, spread over the clip: every second one of 17."""
HEIGHT, PICTURE = 64, 64
"""Sides in px at which the instruments have learnt to read frames and reference pictures."""
FAR, NEAR = 0.2, 0.15
"""Frame heights: further than anybody goes between two observed frames, and how near a place
somebody stands there."""
FLAWED = 0.5
"""What a missing or swapped subject's similarity still counts."""

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class SubjectLikeness:
    """What is seen of one subject.

    similarity: cosine to its pictures, best match of each observed frame, mean over all of them; a
    frame without a match counts 0. lowest: that of the worst frame.
    missing: in more than half of the frames nobody is as like it as `GATE`.
    looks_like: the other subject of the request whom its track resembles more than itself, on the
    mean, and as `GATE` asks: one character drawn twice, or features that went over. Who acts whose
    part in the prompt is not seen: two that are exchanged all along are both there.
    switched: between two frames it turns up where another subject stood, and that one elsewhere,
    both further off than anybody goes in that time: looks went from one to the other.
    copy_paste: MultiID-Bench's score, from -1 (as like its further pictures as can be) to +1 (a
    copy of the first, which the generator saw); None where there is but one picture of it.
    """

    name: str
    similarity: float
    lowest: float
    missing: bool = False
    looks_like: str | None = None
    switched: bool = False
    copy_paste: float | None = None

    @property
    def swapped(self) -> bool:
        """Taken for another subject, all along or from some frame on."""
        return self.looks_like is not None or self.switched

    @property
    def worth(self) -> float:
        """Its similarity, 0 at least, and only `FLAWED` of it where it is missing or swapped."""
        return max(self.similarity, 0.0) * (FLAWED if self.missing or self.swapped else 1.0)


@dataclass(frozen=True)
class Likeness:
    """What is seen of a video. strangers: characters of a frame who are like nobody asked for,
    mean over frames. reached: the subjects' mean similarity as a share of the way from random
    other characters (0) to a true clip (1), None where the model was not evaluated with as many."""

    subjects: tuple[SubjectLikeness, ...]
    strangers: float
    reached: float | None = None

    @property
    def overall(self) -> float:
        """What candidates are ranked by, from 0 to 1: the `worth` of the worst subject. 1 where
        nobody was asked for."""
        return min((subject.worth for subject in self.subjects), default=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a job record, to four digits."""
        subjects = [asdict(one) | {"swapped": one.swapped} for one in self.subjects]
        values = {"overall": self.overall, "reached": self.reached, "strangers": self.strangers}
        return _rounded(values) | {"subjects": [_rounded(one) for one in subjects]}


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


class Judge(Protocol):
    """Who tells likeness. Same frames and pictures, same answer."""

    def score(self, frames_THWC: Frames, references: Sequence[Reference]) -> Likeness:
        """uint8 frames of one clip against the subjects' pictures: one of each name or several,
        of which the first is the one that the generator saw."""
        ...


def load_judge(folder: Path) -> Judge | None:
    """The judge that a model folder brings, on the CPU; None where it brings none.

    Raises:
        CheckpointError: one of its files is altered or of another shape.
    """
    if not set(FILES) <= set(folders.read_manifest(folder).files):
        return None
    with folders.held(folder, FILES) as (manifest, view):
        detector, encoder = (view / name for name in FILES)
        return CropJudge(load_detector(detector), load_identity(encoder), manifest.evaluation)


class CropJudge:
    """Finds the characters, cuts them out and compares their embeddings with the pictures'.

    evaluation: a manifest's, whose `subjects.{n}.lower` and `upper` scale `reached`.
    """

    def __init__(
        self, detector: Detector, encoder: IdentityEncoder, evaluation: Mapping[str, Any]
    ) -> None:
        self.detector = detector
        self.encoder = encoder
        self.evaluation = evaluation

    @torch.no_grad()
    def score(self, frames_THWC: Frames, references: Sequence[Reference]) -> Likeness:
        """See `Judge.score`."""
        pictures: dict[str, list[Frames]] = {}
        for one in references:
            square = letterbox(one.to_image(), PICTURE, PICTURE)
            pictures.setdefault(one.name, []).append(np.asarray(square))
        embedded = {name: self._embed(same) for name, same in pictures.items()}
        scale = scale_of(self.evaluation, len(embedded))
        return likeness(self.see(frames_THWC), embedded, scale)

    @torch.no_grad()
    def see(self, frames_THWC: Frames) -> Seen:
        """The characters of each observed frame."""
        found = find(self.detector, observed(frames_THWC))
        return Seen(
            found.boxes_TDK.double().numpy(),
            found.real_TD.numpy(),
            embed(self.encoder, found).double().numpy(),
            HEIGHT,
        )

    def _embed(self, pictures: Sequence[Frames]) -> Floats:
        crops = reference_crops(torch.from_numpy(np.stack(pictures)))
        return self.encoder(crops).double().numpy()


def observed(frames_THWC: Frames) -> Tensor:
    """The frames that are looked at, uint8 [T, 64, W, 3], W a multiple of 16; unchanged where they
    have that size."""
    num, height, width, _ = frames_THWC.shape
    moments = np.linspace(0, num - 1, min(num, OBSERVED)).round().astype(int)
    pixels = torch.from_numpy(frames_THWC[moments])
    wide = max(16, 16 * round(width * HEIGHT / height / 16))
    if (height, width) == (HEIGHT, wide):
        return pixels
    planes = pixels.movedim(-1, 1).float()
    resized = F.interpolate(planes, (HEIGHT, wide), mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)


def scale_of(evaluation: Mapping[str, Any], num_subjects: int) -> tuple[float, float] | None:
    """Similarity of random other characters and of true clips, as a model folder's evaluation has
    it for so many subjects; None where it has not."""
    try:
        row = evaluation["subjects"][str(num_subjects)]
        lower, upper = float(row["lower"]), float(row["upper"])
    except (KeyError, TypeError, ValueError):
        return None
    return (lower, upper) if upper > lower else None


def likeness(
    seen: Seen, pictures: Mapping[str, Floats], scale: tuple[float, float] | None = None
) -> Likeness:
    """The verdict. pictures: of each subject unit vectors [P, E], the generator's first.
    scale: similarity of random other characters and of true clips."""
    num_real = seen.real_TD.sum(1)
    if not pictures:
        return Likeness((), float(num_real.mean()))
    names = list(pictures)
    wanted_SE = np.stack([_unit(own_PE.mean(0)) for own_PE in pictures.values()])
    who_TS, cosine_TS = matched(seen, wanted_SE)
    like_TS = (who_TS != NOBODY) & (cosine_TS >= GATE)
    track_TS, _ = matched(seen, wanted_SE, SMOOTH)
    switched_S, shown_SE = switches(seen, track_TS), along(seen, track_TS)
    likest_S = likest(shown_SE @ wanted_SE.T, (track_TS != NOBODY).mean(0))
    subjects = tuple(
        SubjectLikeness(
            name=name,
            similarity=float(cosine_TS[:, k].mean()),
            lowest=float(cosine_TS[:, k].min()),
            missing=bool((~like_TS[:, k]).mean() > 0.5),
            looks_like=names[likest_S[k]] if likest_S[k] != k else None,
            switched=bool(switched_S[k]),
            copy_paste=_copied(shown_SE[k], pictures[name]),
        )
        for k, name in enumerate(names)
    )
    reached = None
    if scale is not None:
        reached = (float(cosine_TS.mean()) - scale[0]) / (scale[1] - scale[0])
    return Likeness(subjects, float((num_real - like_TS.sum(1)).mean()), reached)


def likest(cosine_SS: Floats, found_S: Floats) -> NDArray[np.int64]:
    """Whom each subject's track is likest [S], by its cosines to all; itself where it is found in
    half of the frames at most, or where no cosine reaches `GATE`."""
    told_S = (found_S > 0.5) & (cosine_SS.max(1) >= GATE)
    return np.where(told_S, cosine_SS.argmax(1), range(len(cosine_SS)))


def switches(seen: Seen, track_TS: NDArray[np.int64]) -> Bools:
    """Subjects [S] that turn up, between two observed frames, where another one stood that left."""
    rows = np.arange(len(track_TS))[:, None]
    place_TS2 = (centres(seen.boxes_TDK) / seen.height)[rows, track_TS]
    place_TS2[track_TS == NOBODY] = np.nan  # whoever is not there has not moved
    # From the place of one before (first S) to that of another after.
    way_TSS = np.linalg.norm(place_TS2[:-1, :, None] - place_TS2[1:, None], axis=-1)
    left_TS = way_TSS.diagonal(axis1=1, axis2=2) > FAR
    taken_TSS = (way_TSS < NEAR) & left_TS[:, :, None] & left_TS[:, None]
    return taken_TSS.any((0, 1))


def _copied(shown_E: Floats, pictures_PE: Floats) -> float | None:
    if len(pictures_PE) < 2 or not shown_E.any():
        return None
    return float(copy_paste(shown_E, _unit(pictures_PE[1:].mean(0)), pictures_PE[0]))


def _unit(x_E: Floats) -> Floats:
    return x_E / max(float(np.linalg.norm(x_E)), 1e-9)
