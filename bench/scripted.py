"""An engine that follows a script instead of a model, for the benches of the queue only.

A run is a chain of sha256, one link a step, so that it can only end right if every step was made
once and in order, whoever made it. The video's one frame shows the chain's end as black and white
blocks: `seen` reads it back from a picture, whatever codec was in between.

The prompt gives the orders: `step_ms=20` waits so long at each step, `store_ms=500` while the
video is encoded.
"""

import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.errors import StateError
from engine.presets import MINIATURE, Preset
from engine.runtime import STANDARD, Runtime
from engine.spec import TIERS, Reference, Spec
from engine.video import Made, Video

SIDE = 8  # blocks of the frame
BLOCK_PX = 4


@dataclass(frozen=True)
class Progress:
    """The fields of engine.pipeline.Progress, whose module needs torch."""

    stage: str
    step: int
    num_steps: int
    preview: bytes | None = None


@dataclass(frozen=True)
class Step:
    """The fields of engine.sample.Step that a worker reads."""

    done: int
    num_steps: int


@dataclass(frozen=True)
class State:
    """The door of engine.state.DenoiseState. `link` is the chain's last one, in hex."""

    spec: dict[str, Any]
    step: Step
    link: str

    def to_bytes(self) -> bytes:
        """All of it."""
        return json.dumps([self.spec, self.step.done, self.step.num_steps, self.link]).encode()


class Slow(Video):
    """A video whose encoding lasts `store_ms` longer."""

    store_ms = 0

    def mp4(self, scale: int = 1, payload: bytes | None = None) -> bytes:
        """After its time."""
        time.sleep(self.store_ms / 1000)
        return super().mp4(scale, payload)


class ScriptedEngine:
    """The door of engine.pipeline.Engine."""

    digest = "scripted"
    preset: Preset = MINIATURE
    tiers = TIERS

    def speed(self) -> float:
        """As if on the card that estimates are for."""
        return 4e14

    @staticmethod
    def state_of(data: bytes) -> State:
        """What `State.to_bytes` wrote. Raises StateError."""
        try:
            spec, done, steps, link = json.loads(data)
        except ValueError as error:
            raise StateError("resume: no state") from error
        return State(spec, Step(done, steps), link)

    def generate(
        self,
        spec: Spec,
        references: Sequence[Reference],
        on_progress: Callable[[Any], None],
        scope: str = "",
        encoded: object = None,
        owner: str = "",
        resume: State | None = None,
        on_state: Callable[[State], None] = lambda state: None,
    ) -> Video:
        """Walks through the stages as the real one does."""
        on_progress(Progress("encode", 0, spec.steps))
        done, link = 0, start(spec.seed, [one.rgb for one in references])
        if resume is not None:
            if Spec.from_json(resume.spec) != spec:
                raise StateError("resume: the state is of another request")
            done, link = resume.step.done, bytes.fromhex(resume.link)
        on_progress(Progress("denoise", done, spec.steps))
        for step in range(done + 1, spec.steps + 1):
            time.sleep(order(spec.prompt, "step_ms") / 1000)
            link = follow(link)
            on_state(State(spec.to_json(), Step(step, spec.steps), link.hex()))
            on_progress(Progress("denoise", step, spec.steps))
        on_progress(Progress("decode", 0, spec.num_frames))
        video = Slow(drawn(link), spec.fps, Made(spec.tier, 2 * spec.steps, spec.steps))
        object.__setattr__(video, "store_ms", order(spec.prompt, "store_ms"))
        return video


def order(prompt: str, name: str) -> int:
    """A whole number that the prompt gives; 0 where it gives none."""
    found = re.search(rf"\b{name}=(\d+)", prompt)
    return int(found[1]) if found else 0


def start(seed: int, pictures: Sequence[bytes]) -> bytes:
    """The chain before its first step. `pictures`: RGB bytes."""
    return hashlib.sha256(str(seed).encode() + b"".join(pictures)).digest()


def follow(link: bytes) -> bytes:
    """One step."""
    return hashlib.sha256(link).digest()


def end(seed: int, steps: int, pictures: Sequence[bytes] = ()) -> str:
    """What `seen` reads from the video of such a request, in hex."""
    link = start(seed, pictures)
    for _ in range(steps):
        link = follow(link)
    return link[: SIDE * SIDE // 8].hex()


def drawn(link: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The first 64 bits as one frame, uint8 [1, 32, 32, 3]."""
    bits = np.unpackbits(np.frombuffer(link[: SIDE * SIDE // 8], np.uint8)).reshape(SIDE, SIDE)
    blocks = np.where(bits == 1, 215, 40).astype(np.uint8)
    plane = blocks.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)
    return np.ascontiguousarray(np.broadcast_to(plane[None, :, :, None], (1, *plane.shape, 3)))


def seen(picture: bytes) -> str:
    """The bits that a picture file of such a frame shows, in hex."""
    with Image.open(io.BytesIO(picture)) as image:
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.packbits(np.asarray(small) > 127).tobytes().hex()


def load(
    folder: Path, encodings: Path | None = None, runtime: Runtime = STANDARD
) -> ScriptedEngine:
    """In place of `workers.boot.load_engine`."""
    return ScriptedEngine()
