"""Who is who in a clip: detections and references matched by likeness and by place.

Legend: T observed frames, D detections of a frame (padded), S subjects, E embedding, K box corners
(left, top, right, bottom, pixels), W ways of giving detections to subjects.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

NOBODY = -1
SMOOTH = 0.7
"""What a frame height of way costs where place and likeness both decide, in cosines."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """Who stands where in the observed frames of a clip. boxes_TDK pixels; real_TD bool, False for
    padding; embedding_TDE unit vectors, zero for padding; height of a frame in pixels."""

    boxes_TDK: Floats
    real_TD: Bools
    embedding_TDE: Floats
    height: int


def centres(boxes: Floats) -> Floats:
    """[..., 4] -> [..., 2]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def assign(
    gain_TDS: Floats, real_TD: Bools, centre_TD2: Floats, smooth: float
) -> NDArray[np.int64]:
    """Who is who: detection of each subject in each frame [T, S], NOBODY where there is none.

    The best permutation of every frame for `smooth` = 0; otherwise the best sequence of
    permutations (Viterbi), where moving by a frame height costs `smooth`. `centre_TD2` is in frame
    heights. No detection is given twice, and none is left over while a subject lacks one.
    """
    num_frames, num_found, num_subjects = gain_TDS.shape
    ways = [
        w
        for w in product([NOBODY, *range(num_found)], repeat=num_subjects)
        if len(set(w) - {NOBODY}) == sum(d != NOBODY for d in w)
    ]
    ways_WS = np.array(ways)
    given = ways_WS != NOBODY
    # Every match earns 2 beyond its cosine, so that leaving one out never pays.
    value_TWS = np.where(given, gain_TDS[:, ways_WS, np.arange(num_subjects)] + 2, 0.0)
    unreal_TW = (given & ~real_TD[:, ways_WS]).any(-1)
    score_TW = np.where(unreal_TW, -1e9, value_TWS.sum(-1))
    total_W, back = score_TW[0], []
    free_WW = np.zeros((len(ways), len(ways)))
    for t in range(1, num_frames):
        way_WW = _moves(ways_WS, centre_TD2[t - 1], centre_TD2[t]) if smooth else free_WW
        step_WW = total_W[:, None] - smooth * way_WW
        back.append(step_WW.argmax(0))
        total_W = step_WW.max(0) + score_TW[t]
    path = [int(total_W.argmax())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return ways_WS[path[::-1]]


def _moves(ways_WS: NDArray[np.int64], before_D2: Floats, now_D2: Floats) -> Floats:
    """Summed way of all subjects from one permutation to another, [W before, W now]; appearing
    and disappearing cost nothing."""
    way_DD = np.linalg.norm(before_D2[:, None] - now_D2[None], axis=-1)
    padded = np.pad(way_DD, ((0, 1), (0, 1)))  # index -1 is the zero row and column
    way_WW = np.zeros((len(ways_WS), len(ways_WS)))
    for way_W in ways_WS.T:  # subject by subject: a thousand ways squared take room
        way_WW += padded[way_W[:, None], way_W[None]]
    return way_WW


def matched(
    seen: Seen, references_SE: Floats, smooth: float = 0.0
) -> tuple[NDArray[np.int64], Floats]:
    """(detection of each subject per frame [T, S], its cosine to the reference [T, S], 0 where
    there is none)."""
    cosine_TDS = seen.embedding_TDE @ references_SE.T
    who_TS = assign(cosine_TDS, seen.real_TD, centres(seen.boxes_TDK) / seen.height, smooth)
    picked = np.take_along_axis(cosine_TDS, np.maximum(who_TS, 0)[:, None, :], axis=1)[:, 0]
    return who_TS, np.where(who_TS == NOBODY, 0.0, picked)


def portrait(seen: Seen, references_SE: Floats) -> Floats:
    """Mean unit embedding [S, E] of each subject over the clip; zero where it is never found."""
    return along(seen, matched(seen, references_SE, SMOOTH)[0])


def along(seen: Seen, who_TS: NDArray[np.int64]) -> Floats:
    """Mean unit embedding [S, E] along each track; zero where nobody is ever found."""
    rows = np.arange(len(who_TS))[:, None]
    picked = np.where((who_TS == NOBODY)[..., None], 0.0, seen.embedding_TDE[rows, who_TS]).sum(0)
    return picked / np.maximum(np.linalg.norm(picked, axis=-1, keepdims=True), 1e-9)


def copy_paste(generated_SE: Floats, truth_SE: Floats, references_SE: Floats) -> Floats:
    """MultiID-Bench's score [S]: (angle to truth - angle to reference) / angle between those two.

    -1: looks like the clip that was asked for; +1: a copy of the reference; 0 where the reference
    and the truth coincide.
    """

    def angle(a: Floats, b: Floats) -> Floats:
        return np.arccos(np.clip((a * b).sum(-1), -1, 1))

    between = angle(truth_SE, references_SE)
    score = angle(generated_SE, truth_SE) - angle(generated_SE, references_SE)
    return np.where(between < 1e-6, 0.0, score / np.maximum(between, 1e-6))
