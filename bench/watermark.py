"""What the mark in the pixels survives: `python -m bench.watermark --json`.

Videos of held-out characters, one, two and three subjects in turns, enlarged and marked as they are
served. After each attack, and a second encoding at crf 20 unless it says otherwise:

    found    share of the marked videos in which a mark is found
    read     share of them whose payload is told; a wrong one would count as `wrong`
    bits     share of the payload's bits that are right, of the likeliest payload, where found
    least    score, and `median`; `need` is what a mark must score at a false-alarm rate of 1e-6

`unmarked` is the same of the videos without a mark, after three of the attacks: how many were
looked at, in how many a mark was `found`, and their `highest` score.

`--sheet` draws frames, the same marked, and the difference times 32.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.ndimage import gaussian_filter

from bench.program import UNUSABLE, told
from bench.tiers import psnr
from engine import watermark
from engine.pipeline import Engine
from engine.video import ASM, Video
from training import evaluate
from training.measure import Instruments

Frames = NDArray[np.uint8]
SUBJECTS = (1, 2, 3)
FPS = 8
AGAIN = 20  # crf of the second encoding: eight above the one served
COLUMNS = ("found", "read", "wrong", "bits", "least", "median", "need")
UNMARKED = ("as served (crf 12)", "crf 28", "scaled by .75")


def encoded(frames: Frames, crf: int = AGAIN) -> Frames:
    """Through H.264 and back; one column or row less where their number is odd."""
    height, width = (side // 2 * 2 for side in frames.shape[1:3])
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "medium", "threads": "1"} | ASM
        for pixels in frames[:, :height, :width]:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Video.from_mp4(buffer.getvalue()).frames


def resized(frames: Frames, across: float, down: float | None = None) -> Frames:
    """Every frame at other sizes, by cubic interpolation."""
    height, width = frames.shape[1:3]
    size = (round(width * across), round(height * (across if down is None else down)))
    return _each(frames, lambda image: image.resize(size, Image.Resampling.BICUBIC))


def cut(frames: Frames, share: float) -> Frames:
    """`share` of each side gone, more of it at the left and the top."""
    height, width = frames.shape[1:3]
    rows, columns = round(height * (1 - share)), round(width * (1 - share))
    top, left = round(0.7 * (height - rows)), round(0.6 * (width - columns))
    return frames[:, top : top + rows, left : left + columns]


def _each(frames: Frames, change: Callable[[Image.Image], Image.Image]) -> Frames:
    return np.stack([np.asarray(change(Image.fromarray(frame))) for frame in frames])


def _turned(frames: Frames) -> Frames:
    return _each(frames, lambda image: image.rotate(2, Image.Resampling.BICUBIC))


def _noisy(frames: Frames) -> Frames:
    noise = np.random.default_rng(0).normal(0, 5, frames.shape)
    return np.clip(frames + noise, 0, 255).astype(np.uint8)


def _graded(frames: Frames) -> Frames:
    """Brighter and of less contrast."""
    return np.clip(30 + 0.8 * frames, 0, 255).astype(np.uint8)


ATTACKS: dict[str, Callable[[Frames], Frames]] = {
    "as served (crf 12)": lambda f: f,
    "crf 20": encoded,
    "crf 28": lambda f: encoded(f, 28),
    "crf 34": lambda f: encoded(f, 34),
    "scaled by .75": lambda f: encoded(resized(f, 0.75)),
    "scaled by 1.5": lambda f: encoded(resized(f, 1.5)),
    "cut by 10 %": lambda f: encoded(cut(f, 0.1)),
    "cut by 40 %": lambda f: encoded(cut(f, 0.4)),
    "cut by 10 %, scaled by .75": lambda f: encoded(resized(cut(f, 0.1), 0.75)),
    "two frames of three dropped": lambda f: encoded(f[::3]),
    "one frame, as a picture": lambda f: f[8:9],
    "noise, 5 levels": lambda f: encoded(_noisy(f)),
    "blurred, 1 px": lambda f: encoded(gaussian_filter(f, (0, 1, 1, 0))),
    "brighter, less contrast": lambda f: encoded(_graded(f)),
    "scaled by .5": lambda f: encoded(resized(f, 0.5)),
    "back to the model's size": lambda f: encoded(resized(f, 0.25)),
    "stretched by 5 % across": lambda f: encoded(resized(f, 1.05, 1.0)),
    "turned by 2 degrees": lambda f: encoded(_turned(f)),
    "mirrored": lambda f: encoded(f[:, :, ::-1]),
}


def films(asked: argparse.Namespace, console: Console) -> list[Video]:
    """Videos as the model makes them."""
    engine = Engine.load(asked.model)
    tools = Instruments.load(asked.instruments or asked.model)
    each = max(2, -(-asked.videos // len(SUBJECTS)))
    cases = [
        case
        for num in SUBJECTS
        for case in evaluate.prepare(evaluate.sample_clips(each, num), tools)
    ][: asked.videos]
    return [
        engine.generate(*evaluate.request(engine, case.clip, {"steps": asked.steps}))
        for case in track(cases, "videos", console=console)
    ]


def trial(received: Frames, payload: bytes) -> dict[str, float]:
    """What is found in one video."""
    best, tried = watermark.search(received)
    need = watermark.needed_score(tried)
    guess, sure = watermark.read(best.chips)
    differing = int.from_bytes(guess, "big") ^ int.from_bytes(payload, "big")
    return {
        "found": best.score >= need,
        "read": best.score >= need and sure and guess == payload,
        "wrong": best.score >= need and sure and guess != payload,
        "bits": 1 - differing.bit_count() / (8 * len(payload)),
        "score": best.score,
        "need": need,
    }


def summary(trials: Sequence[dict[str, float]]) -> dict[str, float]:
    """One attack's figures, see the module's text."""
    found = [one for one in trials if one["found"]]
    scores = [one["score"] for one in trials]
    return {
        "found": len(found) / len(trials),
        "read": sum(one["read"] for one in trials) / len(trials),
        "wrong": sum(one["wrong"] for one in trials) / len(trials),
        "bits": float(np.mean([one["bits"] for one in found])) if found else 0.0,
        "least": min(scores),
        "median": float(np.median(scores)),
        "need": max(one["need"] for one in trials),
    }


def measure(asked: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All attacks on all videos."""
    made = films(asked, console)
    trials: dict[str, list[dict[str, float]]] = {name: [] for name in ATTACKS}
    levels, rows, idle = [], [], []
    for number, video in enumerate(track(made, "attacks", console=console)):
        scale, payload = video.view_scale(), watermark.payload_of(f"video_{number}")
        large = video.frames.repeat(scale, axis=1).repeat(scale, axis=2)
        marked = np.stack(list(watermark.mark(large, payload)))
        levels.append(psnr(marked, large))
        rows.append(_shown(large[0], marked[0]))
        served = Video.from_mp4(video.mp4(scale, payload)).frames
        plain = Video.from_mp4(video.mp4(scale)).frames
        for name, row in trials.items():
            row.append(trial(ATTACKS[name](served), payload))
        idle += [trial(ATTACKS[name](plain), payload) for name in UNMARKED]
    if asked.sheet:
        Image.fromarray(np.concatenate(rows[:4])).save(asked.sheet)
    return {
        "attacks": {name: summary(row) for name, row in trials.items()},
        "unmarked": {
            "looked_at": len(idle),
            "found": sum(one["found"] for one in idle),
            "highest": max(one["score"] for one in idle),
        },
        "videos": len(made),
        "psnr": float(np.mean(levels)),
        "psnr_least": min(levels),
    }


def _shown(large: Frames, marked: Frames) -> Frames:
    difference = 128 + 32 * (marked.astype(int) - large)
    return np.concatenate([large, marked, np.clip(difference, 0, 255).astype(np.uint8)], 1)


def table(result: dict[str, Any]) -> Table:
    """One row per attack."""
    title = f"{result['videos']} videos, {result['psnr']:.1f} dB (least {result['psnr_least']:.1f})"
    idle = result["unmarked"]
    caption = "unmarked: {found} of {looked_at} found, highest {highest:.2f}".format_map(idle)
    shown = Table("attack", *COLUMNS, title=title, caption=caption)
    for name, row in result["attacks"].items():
        shown.add_row(name, *(f"{row[column]:.3g}" for column in COLUMNS))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.watermark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--videos", type=int, default=24, help="in all (24)")
    parser.add_argument("--steps", type=int, default=8, help="denoising steps (8)")
    parser.add_argument("--model", type=Path, default=Path("models/miniature"))
    parser.add_argument("--instruments", type=Path, default=None, help="folder (the model's)")
    parser.add_argument("--sheet", type=Path, help="write a picture here (PNG)")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 when a model folder cannot be used."""
    asked = arguments(given)
    width = None if sys.stderr.isatty() else 160
    result = told(lambda console: measure(asked, console), table, asked.json, width)
    return UNUSABLE if result is None else 0


if __name__ == "__main__":
    sys.exit(main())
