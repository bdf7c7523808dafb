"""An engine that follows a script instead of a model, for tests of the queue only.

It takes its orders from the prompt: `slow` waits at each step, `crash` kills its process at a
step of the first attempt, `always-crash` at every attempt, `oom` raises MemoryError, `spec`
raises SpecError. What it returns is small and depends on spec and pictures alone.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import CheckpointError, SpecError
from engine.presets import MINIATURE, Preset
from engine.runtime import STANDARD, Runtime
from engine.spec import TIERS, Reference, Spec
from engine.video import Made, Video


@dataclass(frozen=True)
class ScriptedProgress:
    """The fields of engine.pipeline.Progress, whose module needs torch."""

    stage: str
    step: int
    num_steps: int
    preview: bytes | None = None


class ScriptedEngine:
    """The door of engine.pipeline.Engine."""

    digest = "scripted"
    preset: Preset = MINIATURE
    tiers = TIERS

    def __init__(self, step_s: float = 0.0, folder: Path | None = None) -> None:
        self._step_s = step_s
        self._folder = folder

    def generate(
        self,
        spec: Spec,
        references: Sequence[Reference],
        on_progress: Callable[[Any], None],
        encoded: object = None,
    ) -> Video:
        """Walks through the stages as the real one does."""
        on_progress(ScriptedProgress("encode", 0, spec.steps))
        on_progress(ScriptedProgress("denoise", 0, spec.steps))
        for step in range(1, spec.steps + 1):
            self._act(spec, step)
            preview = f"preview {step}".encode()
            on_progress(ScriptedProgress("denoise", step, spec.steps, preview))
        on_progress(ScriptedProgress("decode", 0, spec.num_frames))
        digest = hashlib.sha256(repr(spec).encode())
        for one in references:
            digest.update(one.name.encode() + one.rgb)
        frames = np.zeros((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        frames[:] = list(digest.digest()[:3])
        return Video(frames, spec.fps, Made(spec.tier, 2 * spec.steps, spec.steps))

    def _act(self, spec: Spec, step: int) -> None:
        time.sleep(self._step_s if "slow" in spec.prompt else 0)
        if step != max(spec.steps // 2, 1):
            return
        if "spec" in spec.prompt:
            raise SpecError("prompt", "the script says so")
        if "oom" in spec.prompt:
            raise MemoryError("the script says so")
        if "always-crash" in spec.prompt or ("crash" in spec.prompt and self._first(spec)):
            os.kill(os.getpid(), signal.SIGKILL)

    def _first(self, spec: Spec) -> bool:
        assert self._folder is not None
        mark = self._folder / hashlib.sha256(spec.prompt.encode()).hexdigest()
        fresh = not mark.exists()
        mark.touch()
        return fresh


def load_scripted(
    folder: Path, encodings: Path | None = None, runtime: Runtime = STANDARD
) -> ScriptedEngine:
    """Refuses a folder that holds a file `broken`, with its text."""
    broken = folder / "broken"
    if broken.exists():
        raise CheckpointError(broken.read_text())
    return ScriptedEngine(float(os.environ.get("TEST_STEP_S", "0.1")), folder)
