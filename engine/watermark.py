"""An invisible mark in the pixels: 8 bytes that outlive a file's metadata. Knows no torch.

Spread spectrum in luma (Cox et al. 1997), the same in every frame, so that frames may be dropped.
A square of 64 x 64 chips of 4 px is repeated over the picture; each chip is one level brighter or
darker, two where the picture is busy, so no frame is worse than 42.1 dB. A quarter of the chips is
known and tells scale and place. The others carry one word of 256 for each byte of the payload: a
Walsh function of 128 chips or its negative, three times over. Order and signs of the chips are
drawn with SHAKE-256 and public: whoever has a video can look for the mark.

Legend: H W height, width in px; P a side of the square in px; G a side of the square in chips;
K known chips; N bytes; R repeats; C chips of a word; V Walsh functions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.linalg import hadamard
from scipy.ndimage import uniform_filter

Frames = NDArray[np.uint8]
Array = NDArray[Any]

PAYLOAD_BYTES = 8
CHIP_PX = 4
CHIPS = 64
SQUARE_PX = CHIPS * CHIP_PX
WORD = 128
REPEATS = 3
KNOWN = CHIPS**2 - PAYLOAD_BYTES * REPEATS * WORD
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # BT.601, as the encoder converts
WINDOW_PX = 9
BUSY = 3.3  # levels, standard deviation within a window: there a change of two hides
FLOOR = 0.5  # levels, the least that a flat window counts as
SCALES = (0.65, 1.6)  # of a video received to the one marked
FINE = 9
FALSE_ALARM = 1e-6  # for a whole search
WRONG_PAYLOAD = 1e-3


@dataclass(frozen=True)
class Found:
    """A mark. payload: None where it is too faint to be read, or mixed with another. scale: of the
    video received to the one marked. false_alarm: bound on the probability of this much in a video
    without a mark."""

    payload: bytes | None
    scale: float
    false_alarm: float


@dataclass(frozen=True, eq=False)
class Peak:
    """The best place at one scale: its score, and what lies on each chip there, signs undone."""

    score: float
    scale: float
    chips: Array


def payload_of(name: str) -> bytes:
    """What stands in the pixels for a name, such as a video's id: the first bytes of its sha256."""
    return hashlib.sha256(name.encode()).digest()[:PAYLOAD_BYTES]


def mark(frames: Iterable[Frames], payload: bytes) -> Iterator[Frames]:
    """Frames [H, W, 3] of one size as they come, the payload in them. Same in, same out."""
    square_PP = _chips_GG(payload).repeat(CHIP_PX, 0).repeat(CHIP_PX, 1)
    for frame in frames:
        rows, columns = (np.arange(side) % SQUARE_PX for side in frame.shape[:2])
        luma_HW = frame @ LUMA
        mean_HW = uniform_filter(luma_HW, WINDOW_PX)
        busy_HW = uniform_filter(luma_HW**2, WINDOW_PX) - mean_HW**2 > BUSY**2
        change_HW = square_PP[np.ix_(rows, columns)] * (1 + busy_HW.astype(np.int16))
        yield np.clip(frame + change_HW[..., None], 0, 255).astype(np.uint8)


def find(frames: Iterable[Frames]) -> Found | None:
    """The mark in a video, whatever its payload, cut out anywhere and scaled within SCALES.

    Had the signs been drawn by coins, a score would exceed z with a probability of at most
    exp(-z^2 / 2), whatever the picture (Hoeffding 1963, of a sum of signs over its root of
    squares). That times the scales and places tried is `false_alarm`; above FALSE_ALARM there is
    no mark. A payload is told where for each byte one word alone scores what any wrong one of all
    reaches, by the same bound, with a probability of WRONG_PAYLOAD.

    Args:
        frames: at least one, [H, W, 3], all of one size.
    """
    best, tried = search(frames)
    if best.score < needed_score(tried):
        return None
    payload, sure = read(best.chips)
    bound = tried * math.exp(-(best.score**2) / 2)
    return Found(payload if sure else None, best.scale, bound)


def needed_score(tried: int) -> float:
    """What the best of so many scores exceeds with a probability of FALSE_ALARM at most."""
    return math.sqrt(2 * math.log(tried / FALSE_ALARM))


def search(frames: Iterable[Frames]) -> tuple[Peak, int]:
    """The best place at the best scale, and how many there were to try; see `find`."""
    luma_HW = _mean_luma(frames)
    scales = coarse_scales(max(luma_HW.shape))
    tried = SQUARE_PX**2 * (1 + len(scales) + FINE)
    best = peak(luma_HW, 1.0)
    if best.score < needed_score(tried):
        best = max((peak(luma_HW, scale) for scale in scales), key=lambda one: one.score)
        near = best.scale * (scales[1] / scales[0]) ** np.linspace(-0.5, 0.5, FINE)
        best = max((peak(luma_HW, float(s)) for s in near), key=lambda one: one.score)
    return best, tried


def _mean_luma(frames: Iterable[Frames]) -> Array:
    total_HW, count = np.zeros(()), 0
    for frame in frames:
        total_HW = total_HW + frame @ LUMA
        count += 1
    return (total_HW / count).astype(np.float32)


def coarse_scales(side: int) -> list[float]:
    """Scales to try for a longer side in px: from one to the next its ends move by half a chip."""
    low, high = map(math.log, SCALES)
    count = 1 + math.ceil((high - low) * side / CHIP_PX)
    return [float(scale) for scale in np.exp(np.linspace(low, high, count))]


def peak(luma_HW: Array, scale: float) -> Peak:
    """Where the known chips fit best, if the video was scaled so."""
    sums_PP = _chip_sums(_flattened(_resized(luma_HW, 1 / scale)))
    score_PP = scores(sums_PP)
    y, x = np.unravel_index(score_PP.argmax(), score_PP.shape)
    placed_PP = np.roll(sums_PP, (-int(y), -int(x)), (0, 1))
    chips = placed_PP[::CHIP_PX, ::CHIP_PX].ravel() * _layout()[2]
    return Peak(float(score_PP[y, x]), scale, chips)


def scores(sums_PP: Array) -> Array:
    """How well the known chips fit with the square's corner at each place."""
    signs_PP, places_PP = _known_spectra()
    energy_PP = _correlated(sums_PP**2, places_PP)
    return _correlated(sums_PP, signs_PP) / np.sqrt(np.maximum(energy_PP, 1e-6))


def read(chips: Array) -> tuple[bytes, bool]:
    """The likeliest payload, and whether it is sure."""
    taken_NRC = chips[_layout()[1]]
    along_NV = taken_NRC.sum(1) @ hadamard(WORD)
    score_NV = along_NV / np.sqrt(np.maximum(np.square(taken_NRC).sum((1, 2)), 1e-6))[:, None]
    need = math.sqrt(2 * math.log(PAYLOAD_BYTES * 256 / WRONG_PAYLOAD))
    sure = bool(((np.abs(score_NV) >= need).sum(1) == 1).all())
    best_N = np.abs(score_NV).argmax(1)
    score_N = score_NV[np.arange(PAYLOAD_BYTES), best_N]
    guess = (int(v) | (WORD if s < 0 else 0) for v, s in zip(best_N, score_N, strict=True))
    return bytes(guess), sure


@cache
def _layout() -> tuple[Array, Array, Array]:
    """Places of the known chips [K], of the words' chips [N, R, C], and all signs [G * G]."""
    order = np.argsort(np.frombuffer(_drawn("order", 8 * CHIPS**2), "<u8"), kind="stable")
    bits = np.unpackbits(np.frombuffer(_drawn("signs", CHIPS**2 // 8), np.uint8))
    words_NRC = order[KNOWN:].reshape(PAYLOAD_BYTES, REPEATS, WORD)
    return order[:KNOWN], words_NRC, 1 - 2 * bits.astype(np.int16)


def _drawn(what: str, count: int) -> bytes:
    return hashlib.shake_256(f"troupe watermark 1: {what}".encode()).digest(count)


def _chips_GG(payload: bytes) -> Array:
    """+1 and -1. A byte's lower seven bits name its Walsh function, the eighth turns it over."""
    assert len(payload) == PAYLOAD_BYTES
    _, words_NRC, signs = _layout()
    chips = signs.copy()
    walsh_VC = hadamard(WORD)
    for byte, places_RC in zip(payload, words_NRC, strict=True):
        chips[places_RC] *= walsh_VC[byte % WORD] * (-1 if byte >= WORD else 1)
    return chips.reshape(CHIPS, CHIPS)


@cache
def _known_spectra() -> tuple[Array, Array]:
    """Spectra of the known chips' signs, and of where they are, each chip a single pixel."""
    known, _, signs = _layout()
    sign_PP = np.zeros((SQUARE_PX, SQUARE_PX))
    sign_PP[known // CHIPS * CHIP_PX, known % CHIPS * CHIP_PX] = signs[known]
    return np.conj(np.fft.rfft2(sign_PP)), np.conj(np.fft.rfft2(np.abs(sign_PP)))


def _correlated(values_PP: Array, spectrum: Array) -> Array:
    return np.fft.irfft2(np.fft.rfft2(values_PP) * spectrum, s=values_PP.shape)


def _resized(luma_HW: Array, factor: float) -> Array:
    height, width = luma_HW.shape
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size == (width, height):
        return luma_HW
    return np.asarray(Image.fromarray(luma_HW).resize(size, Image.Resampling.BICUBIC))


def _flattened(luma_HW: Array) -> Array:
    """Without what is smooth, and alike in strength where the picture is flat and where it is busy:
    a pixel counts by how little its surroundings hide."""
    detail_HW = luma_HW - uniform_filter(luma_HW, WINDOW_PX)
    return detail_HW / (uniform_filter(np.abs(detail_HW), WINDOW_PX) + FLOOR)


def _chip_sums(detail_HW: Array) -> Array:
    """All squares of the picture laid on each other; from each pixel on, the sum over a chip."""
    height, width = detail_HW.shape
    padded = np.pad(detail_HW, ((0, -height % SQUARE_PX), (0, -width % SQUARE_PX)))
    folded_PP = padded.reshape(-1, SQUARE_PX, padded.shape[1] // SQUARE_PX, SQUARE_PX).sum((0, 2))
    rows_PP = sum(np.roll(folded_PP, -step, 0) for step in range(CHIP_PX))
    return np.asarray(sum(np.roll(rows_PP, -step, 1) for step in range(CHIP_PX)), np.float64)
