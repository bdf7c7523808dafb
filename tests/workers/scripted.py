"""An engine that follows a script instead of a model, for tests of the queue only.

It takes its orders from the prompt: `slow` waits at each step, `crash` kills its process at a
step of the first attempt, `always-crash` at every attempt, `oom` raises MemoryError, `quote`
raises ValueError with the prompt in it, `spec` raises SpecError. What it returns is small and
depends on spec and pictures alone.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.scripted import Progress, Step
from engine.errors import CheckpointError, SpecError, StateError
from engine.presets import MINIATURE, Preset
from engine.runtime import STANDARD, Runtime
from engine.spec import TIERS, Reference, Spec
from engine.video import Made, Video

if TYPE_CHECKING:
    from engine.edit import Edit


@dataclass(frozen=True)
class ScriptedState:
    """The door of engine.state.DenoiseState."""

    spec: dict[str, Any]
    step: Step

    def to_bytes(self) -> bytes:
        """All of it."""
        return json.dumps([self.spec, self.step.done, self.step.num_steps]).encode()

    def of(self, spec: Spec) -> int:
        """The steps done, if it is of this request."""
        if self.spec != json.loads(json.dumps(spec.to_json())):
            raise StateError("resume: the state is of another request")
        return self.step.done


class ScriptedEngine:
    """The door of engine.pipeline.Engine."""

    digest = "scripted"
    preset: Preset = MINIATURE
    tiers = TIERS

    def __init__(self, step_s: float = 0.0, folder: Path | None = None) -> None:
        self._step_s = step_s
        self._folder = folder
        self.steps_made = 0

    def speed(self) -> float:
        """As if on the card that estimates are for."""
        return 4e14

    @staticmethod
    def state_of(data: bytes) -> "ScriptedState":
        """What `ScriptedState.to_bytes` wrote."""
        try:
            spec, done, steps = json.loads(data)
        except ValueError as error:
            raise StateError("resume: no state") from error
        return ScriptedState(spec, Step(done, steps))

    def generate(
        self,
        spec: Spec,
        references: Sequence[Reference],
        on_progress: Callable[[Any], None],
        scope: str = "",
        encoded: object = None,
        owner: str = "",
        edit: "Edit | None" = None,
        resume: "ScriptedState | None" = None,
        on_state: Callable[[Any], None] = lambda state: None,
    ) -> Video:
        """Walks through the stages as the real one does."""
        on_progress(Progress("encode", 0, spec.steps))
        first = 0 if resume is None else resume.of(spec)
        on_progress(Progress("denoise", first, spec.steps))
        for step in range(first + 1, spec.steps + 1):
            self.steps_made += 1
            self._act(spec, step)
            on_state(ScriptedState(spec.to_json(), Step(step, spec.steps)))
            preview = f"preview {step}".encode()
            on_progress(Progress("denoise", step, spec.steps, preview))
        on_progress(Progress("decode", 0, spec.num_frames))
        digest = hashlib.sha256(repr(spec).encode())
        for one in references:
            digest.update(one.name.encode() + one.rgb)
        if edit is not None:
            edit.validate(spec)
            digest.update(edit.video.frames.tobytes() + str(edit.strength).encode())
        frames = np.zeros((spec.num_frames, spec.height, spec.width, 3), np.uint8)
        frames[:] = list(digest.digest()[:3])
        return Video(frames, spec.fps, Made(spec.tier, 2 * spec.steps, spec.steps))

    def _act(self, spec: Spec, step: int) -> None:
        time.sleep(self._step_s if "slow" in spec.prompt else 0)
        if step != max(spec.steps // 2, 1):
            return
        if "spec" in spec.prompt:
            raise SpecError("prompt", "the script says so")
        if "quote" in spec.prompt:
            raise ValueError(spec.prompt)
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


class ScriptedLikeness:
    """The door of engine.likeness.Likeness, whose module needs torch: half alike, every one."""

    overall = 0.5

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def to_json(self) -> dict[str, Any]:
        """As the real one."""
        seen = {"similarity": 0.5, "missing": False, "looks_like": None, "switched": False}
        subjects = [{"name": name} | seen for name in self._names]
        return {"overall": 0.5, "reached": 0.6, "strangers": 0.0, "subjects": subjects}


class ScriptedJudge:
    """The door of engine.likeness.Judge."""

    def score(self, frames: object, references: Sequence[Reference]) -> ScriptedLikeness:
        """Looks at nothing."""
        return ScriptedLikeness([one.name for one in references])


def load_scripted(
    folder: Path, encodings: Path | None = None, runtime: Runtime = STANDARD
) -> ScriptedEngine:
    """Refuses a folder that holds a file `broken`, with its text."""
    broken = folder / "broken"
    if broken.exists():
        raise CheckpointError(broken.read_text())
    return ScriptedEngine(float(os.environ.get("TEST_STEP_S", "0.1")), folder)
