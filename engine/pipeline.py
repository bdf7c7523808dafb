"""The engine: modules in, videos out. The worker, the evaluation and RL all run this sampler.

Legend: B requests, C channels, F latent frames, T frames, H W height, width.

    Spec, References ─ encode ─▶ Encodings ─ denoise ─▶ latents ─ decode ─▶ Video

An Engine holds modules and nothing of any request: encodings, noise, conditions and the solver's
memory are arguments and locals. Only the cache outlives a call, under the content's own digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from engine import batching, families, flow, folders, state
from engine.attention import use
from engine.cache import EncodingCache
from engine.compile import velocity_of
from engine.dit import WanDiT
from engine.edit import Edit
from engine.encoder import Encoder, by_name, digest_of, needed_files
from engine.encodings import Encoded, Encoders, EncodingsBatch, stack
from engine.errors import BackendError
from engine.likeness_guidance import moving
from engine.loading import load_models
from engine.offload import grouped
from engine.parallel import Team
from engine.placement import placed
from engine.presets import Preset
from engine.reader import Readers, readers_of
from engine.runtime import STANDARD, Runtime
from engine.sample import Conditions, Each, Solve, Source, Step, one_by_one, sample
from engine.spec import Guidance, Reference, Spec
from engine.speed import sustained
from engine.state import DenoiseState
from engine.tiers import NEW, Run, served
from engine.vace import context_latents
from engine.vae import to_frames
from engine.video import Made, Video, picture_bytes

NUM_PREVIEWS = 6


@dataclass(frozen=True)
class Progress:
    """How far a generation is. preview: a JPEG of the first frame as it now looks, or None.

    step, num_steps: steps of the denoising; while decoding, frames that are out and all frames.
    """

    stage: str  # "encode", "denoise" or "decode"
    step: int
    num_steps: int
    preview: bytes | None = None


OnProgress = Callable[[Progress], None]
OnState = Callable[[DenoiseState], None]


class Engine:
    """A DiT with its encoders. `digest` names the weights of all.

    The modules stay where they are and as they are; `load` places them. device: where the DiT
    computes; None: where its weights lie. readers: whom identity guidance asks.
    """

    state_of = staticmethod(DenoiseState.from_bytes)  # what a worker goes on from

    def __init__(
        self,
        dit: WanDiT,
        encoders: Encoders,
        preset: Preset,
        digest: str,
        cache: EncodingCache | None = None,
        compile: str = "eager",
        device: torch.device | None = None,
        team: Team | None = None,
        readers: Readers | None = None,
    ) -> None:
        self.dit, self.readers = dit.eval(), readers
        self.device = device or dit.head.head.weight.device
        self.team = team
        self.computing = partial(state.computing, self.dit, compile, self.device)
        run = self.dit if team is None else team.twin(self.dit, compile)
        self.velocity = velocity_of(run, compile)
        self.encoder = Encoder(encoders, preset, digest, cache)
        self.encoders, self.preset, self.digest = encoders, preset, digest
        self.files: Mapping[str, str] = {}  # of the folder that it was loaded from

    @classmethod
    def load(
        cls,
        folder: Path,
        cache: EncodingCache | None = None,
        runtime: Runtime = STANDARD,
        team: Team | None = None,
    ) -> Engine:
        """Loads a model folder, every file of it verified first.

        Args:
            runtime: where the models lie and how they compute.
            team: the processes that share each request with this one, see `engine.parallel`.

        Raises:
            CheckpointError: a file is missing, altered, unlisted or of another shape.
            BackendError: this machine cannot do what the runtime asks, or the team cannot share out
                this model; the message names it.
        """
        if team is not None and runtime.offload == "group":
            raise BackendError("offload=group is for one process: the blocks of a team stay")
        if runtime.encoders == "only":
            raise BackendError("encoders=only makes no videos: it is for a worker that encodes")
        folder, place = Path(folder), placed(runtime)
        with folders.held(folder) as (manifest, view):
            preset = manifest.resolve()
            folders.require(manifest, needed_files(preset))
            dit, encoders = load_models(view, preset, runtime, place)
            readers = readers_of(view, preset, place.device)
        digest, how = manifest.digest(), (runtime.compile, place.device, team)
        engine = cls(dit, encoders, preset, digest, cache, *how, readers)
        engine.files, engine.encoder.digest = dict(manifest.files), digest_of(manifest)
        if runtime.offload == "group":
            engine.velocity = grouped(dit, place.device)
        # Last, so that a load that fails leaves the engine that serves as it is.
        use(place.device, place.attention)
        return engine

    def speed(self) -> float:
        """FLOPs a second that its DiT will about sustain."""
        return sustained(self.device, self.dit.head.head.weight.dtype)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Those that this model can be asked for, computed as it is here."""
        return served(self.velocity, self.preset.limits.tiers)

    def generate(
        self,
        spec: Spec,
        references: Sequence[Reference],
        on_progress: OnProgress | None = None,
        scope: str = "",
        edit: Edit | None = None,
        encoded: Encoded | None = None,
        owner: str = "",
        resume: DenoiseState | None = None,
        on_state: OnState | None = None,
    ) -> Video:
        """A video of the prompt with the referenced subjects. Same spec, same bytes.

        Args:
            references: one per name in `spec.names`, in any order.
            on_progress: called at every stage, after every step, and while frames come out; what
                it raises (such as `Cancelled`) ends the work there and comes out of here.
            scope: whose request it is; encodings are never shared between scopes.
            edit: a video to start from, of the spec's size and length.
            encoded: the request's encodings, where an `engine.encoder.Encoder` with the same
                weights has made them; None makes them here.
            owner: for whom encodings are kept, see `engine.cache`.
            resume: where an earlier run of the same request stood; the video is the same.
            on_state: called after every step, before `on_progress`, with where the run stands;
                nothing is copied unless it is asked for its bytes.

        Raises:
            SpecError: the request is not one that this model can serve.
            StateError: `resume` is not of this request, computed as it is here; start without it.
            BackendError: the runtime's tiles are too small for the decoder, there are neither
                encodings nor encoders, or a team is asked for states.
        """
        tell = on_progress or (lambda progress: None)
        self._check(spec, references)
        if edit is not None:
            edit.validate(spec)
        if self.team is not None and (resume, on_state) != (None, None):
            raise BackendError("resume and on_state are for one process: a team has no states")
        tell(Progress("encode", 0, spec.steps))
        known = encoded or self.encode(spec, references, scope, owner)
        source = None if edit is None else edit.source(self.encoders.vae, spec.steps)
        context = self.context(spec, [known], edit)
        given = (self.digest, spec, known, source, context)
        origin = cache(lambda: state.origin(*given, self.computing()))
        if resume is not None:
            resume = self._resumed(resume, origin(), spec)
        step, tally = (resume.step, resume.tally) if resume else (None, NEW)
        run = Run(self.velocity, spec.tier, tally=tally)
        leading = families.num_leading(self.preset.family, len(spec.names))

        def on_step(step: Step) -> None:
            if on_state is not None:
                if self.device.type == "cuda":  # or storing would seem to take the step's time
                    torch.cuda.synchronize(self.device)
                on_state(DenoiseState(origin(), step, run.tally))
            tell(self._progress(step, leading))

        tell(Progress("denoise", step.done if step else 0, spec.steps))
        latents = self._denoise([spec], [known], run, source, context, on_step, step)
        tell(Progress("decode", 0, spec.num_frames))
        chunks: list[Tensor] = []
        for chunk_BTHWC in self.stream(latents):
            chunks.append(chunk_BTHWC[0])
            tell(Progress("decode", sum(map(len, chunks)), spec.num_frames))
        return Video(torch.cat(chunks).numpy(), spec.fps, self._made(run))

    def generate_many(
        self, specs: Sequence[Spec], references: Sequence[Sequence[Reference]], scope: str = ""
    ) -> Iterator[Video]:
        """Videos of several requests, in their order; those that are alike share their forwards.

        Args:
            references: of each request, as for `generate`.

        Raises:
            SpecError: a request is not one that this model can serve; before the first video.
        """
        asked = list(zip(specs, references, strict=True))
        for spec, pictures in asked:
            self._check(spec, pictures)
        return self._many(asked, scope)

    def _many(
        self, asked: Sequence[tuple[Spec, Sequence[Reference]]], scope: str
    ) -> Iterator[Video]:
        made: dict[int, Video] = {}
        told = 0
        for group in batching.groups(self.preset, [spec for spec, _ in asked]):
            made |= zip(group, self._together([asked[n] for n in group], scope), strict=True)
            while told in made:
                yield made.pop(told)
                told += 1

    def encode(
        self, spec: Spec, references: Sequence[Reference], scope: str = "", owner: str = ""
    ) -> Encoded:
        """Encodings of the request and of its negative prompt, see `engine.encoder`."""
        return self.encoder.encode(spec, references, scope, owner)

    def _together(
        self, asked: Sequence[tuple[Spec, Sequence[Reference]]], scope: str
    ) -> Iterator[Video]:
        """The videos of requests that are alike (`engine.batching`), denoised as one batch."""
        specs = [spec for spec, _ in asked]
        run = Run(self.velocity, specs[0].tier)
        encoded = [self.encode(spec, references, scope) for spec, references in asked]
        latents = self._denoise(specs, encoded, run, None, self.context(specs[0], encoded))
        made = self._made(run)
        for spec, one in zip(specs, latents.split(1), strict=True):
            yield Video(self.decode(one)[0].numpy(), spec.fps, made)

    def _denoise(
        self,
        specs: Sequence[Spec],
        encoded: Sequence[Encoded],
        run: Run,
        source: Source | None,
        context_BCFHW: Tensor | None,
        on_step: Callable[[Step], None] | None = None,
        resume: Step | None = None,
    ) -> Tensor:
        """Latents of requests that are alike, one row each."""
        first = specs[0]
        return self.sample(
            stack([one.full for one in encoded]),
            stack([one.negative for one in encoded]),
            [spec.seed for spec in specs],
            self.preset.latent_shape(first.width, first.height, first.num_frames),
            flow.schedule(first.solver, first.steps, self.preset.defaults.shift),
            first.guidance,
            on_step,
            resume,
            source,
            context_BCFHW,
            run,
        )

    @torch.no_grad()
    def sample(
        self,
        batch: EncodingsBatch,
        negative: EncodingsBatch,
        seeds: Sequence[int],
        shape: tuple[int, int, int, int],
        plan: flow.Schedule,
        guidance: Guidance,
        on_step: Callable[[Step], None] | None = None,
        resume: Step | None = None,
        source: Source | None = None,
        context_BCFHW: Tensor | None = None,
        run: Run | None = None,
        solve: Solve = flow.step,
    ) -> Tensor:
        """Latents [B, C, F, H, W] of B requests, one seed each; as many share a forward as it pays.

        Args:
            negative: encodings of the negative prompts; one row serves all.
            shape: of one request's latents, see `Preset.latent_shape`.
            source: a known clip to start from, see `engine.edit`.
            context_BCFHW: what VACE's context blocks read, see `engine.vace`.
            run: in which tier, and who counts; a new one for every call. None is exact.
            solve: makes each step; reinforcement draws noise there and records.
        """
        device, family, num_subjects = self.device, self.preset.family, batch.refs_BSCHW.shape[1]
        context_BCFHW = None if context_BCFHW is None else context_BCFHW.to(device)
        batch = batch.to(device)
        conditions = self.conditions(batch, negative.to(device), guidance, context_BCFHW)
        start = families.noise(family, seeds, shape, num_subjects).to(device)
        leading = families.num_leading(family, num_subjects)
        source = source.behind(batch.refs_BSCHW.transpose(1, 2)) if source and leading else source
        run = run or Run(self.velocity)
        rows = batching.room(self.preset, shape, num_subjects, run.tier)
        told = (self.dit, device, conditions.full, rows)
        pull = batching.pullback(*told) if guidance.identity_scale else None
        each: Each = one_by_one
        watched: AbstractContextManager[None] = nullcontext()
        if self.team is not None:
            conditions = self.team.own(conditions)
            each, watched = self.team.each, self.team.exchanging()
        velocity = batching.limited(run, rows)
        move = moving(self.readers, batch, guidance, self.preset.vae.spatial_factor, pull)
        how = (on_step, resume, source and source.to(device), each, solve, move)
        with watched:
            return sample(velocity, start, conditions, plan, guidance, *how)[:, :, leading:]

    @torch.no_grad()
    def conditions(
        self,
        batch: EncodingsBatch,
        negative: EncodingsBatch,
        guidance: Guidance,
        context_BCFHW: Tensor | None = None,
    ) -> Conditions:
        """K and V of text and subjects for all that guidance needs, computed once."""
        return families.conditions(
            self.preset.family, self.dit, batch, negative, guidance, context_BCFHW
        )

    def context(
        self, spec: Spec, encoded: Sequence[Encoded], edit: Edit | None = None
    ) -> Tensor | None:
        """VACE's context of requests like this one, [B, C, S + F, H, W]; None in other families."""
        if self.preset.family != "vace":
            return None
        pixels, mask = (None, None) if edit is None else edit.pixels()
        shape, vae = (spec.num_frames, spec.height, spec.width), self.encoders.vae
        refs = [one.full.refs_SCHW for one in encoded]
        return torch.stack([context_latents(vae, each, pixels, mask, shape) for each in refs])

    def _resumed(self, given: DenoiseState, origin: state.Origin, spec: Spec) -> DenoiseState:
        """The state, on the DiT's device. Raises StateError if it is another run's."""
        shape = self.preset.latent_shape(spec.width, spec.height, spec.num_frames)
        leading = families.num_leading(self.preset.family, len(spec.names))
        given.check(origin, (1, shape[0], leading + shape[1], *shape[2:]), spec)
        return given.to(self.device)

    def _made(self, run: Run) -> Made:
        """What a run has computed, in all processes that shared it."""
        counts = (run.asked, run.computed)
        if self.team is not None:
            with self.team.exchanging():
                counts = self.team.counted(*counts)
        return Made(run.tier, *counts)

    def _check(self, spec: Spec, references: Sequence[Reference]) -> None:
        """What can be seen of a request before anything is computed.

        Raises SpecError, or BackendError if the tiles do not fit.
        """
        spec.validate(self.preset.limits)
        by_name(spec, references)
        Run(self.velocity, spec.tier)
        _, _, *sides = self.preset.latent_shape(spec.width, spec.height, spec.num_frames)
        self.encoders.vae.check_tiles(*sides)

    def stream(self, latents_BCFHW: Tensor) -> Iterator[Tensor]:
        """uint8 frames as they come, [B, 1, H, W, 3] and then four at a time, on the CPU."""
        for pixels_BCTHW in self.encoders.vae.stream(latents_BCFHW):
            yield to_frames(pixels_BCTHW).cpu()

    def decode(self, latents_BCFHW: Tensor) -> Tensor:
        """uint8 frames [B, T, H, W, 3], on the CPU."""
        return torch.cat(list(self.stream(latents_BCFHW)), dim=1)

    def _progress(self, step: Step, leading: int) -> Progress:
        # The first latent frame decodes alone: a picture of the scene for 1 / T of a decode.
        preview = None
        every = max(1, step.num_steps // NUM_PREVIEWS)
        due = step.done % every == 0 and step.done < step.num_steps
        if due and step.x0 is not None:
            frame_HWC = self.decode(step.x0[:1, :, leading : leading + 1])[0, 0]
            preview = picture_bytes(Image.fromarray(frame_HWC.numpy()))
        return Progress("denoise", step.done, step.num_steps, preview)
