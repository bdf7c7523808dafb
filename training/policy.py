"""The model in training as a policy: the engine's own sampler makes its rollouts.

Legend: B rollouts, C channels, F latent frames, H W latent height, width, S subjects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from engine import families, flow
from engine.dit import Condition, WanDiT
from engine.encoder import Encoder
from engine.encodings import Encoded, Encoders, EncodingsBatch, stack
from engine.pipeline import Engine
from engine.presets import Preset
from engine.sample import Conditions, Solve, Step, Velocity, guide, one_by_one
from engine.spec import Guidance, Reference, Spec
from training.rollout import At

DECODED = 4  # clips at once


@dataclass(frozen=True, eq=False)
class Task:
    """What a group is asked for: a request, with what the encoders made of it. Known by its own
    identity, never by its words. All tasks of a run have one size and length."""

    spec: Spec
    references: tuple[Reference, ...]
    encoded: Encoded

    @classmethod
    def of(cls, spec: Spec, references: Sequence[Reference], encoder: Encoder) -> Task:
        """Encodes the request."""
        return cls(spec, tuple(references), encoder.encode(spec, references))


@dataclass(frozen=True)
class EnginePolicy:
    """`training.rollout.Policy` over a `WanDiT`, for samples that are `Task`s.

    guidance: in rollouts and replays alike. detach: under guidance only the forward with prompt and
    subjects learns, at the price of one backward instead of two or three. decoded: so many latent
    frames are shown to the reward, the first ones; 0 is all. The VAE is causal: what they decode to
    is the beginning of the whole video, and one of five costs a fifth.
    """

    encoders: Encoders
    preset: Preset
    guidance: Guidance = field(default_factory=lambda: Guidance(scale=1.0))
    detach: bool = False
    decoded: int = 0

    def sample(
        self,
        model: nn.Module,
        samples: Sequence[Task],
        seeds: Sequence[int],
        plan: flow.Schedule,
        solve: Solve,
        resume: Step | None = None,
    ) -> Tensor:
        """Latents [B, C, F, H, W]."""
        spec, engine = samples[0].spec, self.engine(model)
        return engine.sample(
            *self._batches(samples),
            seeds,
            self.preset.latent_shape(spec.width, spec.height, spec.num_frames),
            plan,
            self.guidance,
            resume=resume,
            context_BCFHW=self._context(engine, samples),
            solve=solve,
        )

    def velocity(self, model: nn.Module, samples: Sequence[Task]) -> At:
        """See `Policy.velocity`. The conditions are computed here, with gradient and once for each
        run of equal samples."""
        assert isinstance(model, WanDiT)
        runs = [(task, len(list(same))) for task, same in groupby(samples)]
        times = runs[0][1] if len({length for _, length in runs}) == 1 else 1
        tasks, device = samples[::times], model.head.head.weight.device
        batch, negative = (part.to(device) for part in self._batches(tasks))
        context = self._context(self.engine(model), tasks)
        made = families.conditions(
            self.preset.family, model, batch, negative, self.guidance,
            None if context is None else context.to(device),
        )  # fmt: skip
        conditions = Conditions(*(None if c is None else c.repeated(times) for c in made))  # type: ignore[arg-type]
        each = _full_learns if self.detach else one_by_one

        def at(x: Tensor, t: float) -> Tensor:
            return guide(model.denoise, x, t, conditions, self.guidance, each)

        return at

    def frames(self, model: nn.Module, latents: Tensor) -> Tensor:
        """uint8 [B, F, H, W, 3], as the decoder makes them: nothing is encoded as a video."""
        engine = self.engine(model)
        shown = latents[:, :, : self.decoded or None]
        return torch.cat([engine.decode(part) for part in shown.split(DECODED)])

    def leading(self, samples: Sequence[Task]) -> int:
        """Frames of references in front of the video's own: in the family vace."""
        return families.num_leading(self.preset.family, len(samples[0].references))

    def engine(self, model: nn.Module) -> Engine:
        """The engine over this module, as it is at this moment."""
        assert isinstance(model, WanDiT)
        return Engine(model, self.encoders, self.preset, "training")

    def _batches(self, samples: Sequence[Task]) -> tuple[EncodingsBatch, EncodingsBatch]:
        encoded = [task.encoded for task in samples]
        return stack([one.full for one in encoded]), stack([one.negative for one in encoded])

    def _context(self, engine: Engine, samples: Sequence[Task]) -> Tensor | None:
        return engine.context(samples[0].spec, [task.encoded for task in samples])


def _full_learns(
    velocity: Velocity, x: Tensor, t_B: Tensor, conditions: Sequence[Condition]
) -> Sequence[Tensor]:
    """Every forward of guidance; the first has a gradient, which is of prompt and subjects."""
    full, *others = conditions
    with torch.no_grad():
        rest = [velocity(x, t_B, condition) for condition in others]
    return [velocity(x, t_B, full), *rest]
