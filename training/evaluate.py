"""Is it them? Generated clips of held-out characters, measured against truth and strangers.

The method, with each choice and its reason:

- Cases: clips of the held-out split, whose identities no training saw, with cross-pair references,
  captions in the "names" style (so that looks come from the pictures alone) and, for two and more
  subjects, captions that tell every character's place (so that "its place" means something). The
  world's usual share of near-twins on one stage is kept, and reported apart.
- Each clip is generated once per seed. `training.measure` reads every second frame: detector ->
  crops -> embeddings -> best permutation against the references, frame by frame.
- similarity: cosine of a subject to its own reference, mean over frames; a frame where it is not
  found counts 0. Mean over the subjects of a case, then over cases, then over seeds.
- upper: the same measurement of the ground-truth clips, from raw pixels (a codec's loss counts
  against the model). lower: the same measurement of the ground-truth clips against the references
  of another case, with the same advantage of the best permutation.
- reached = (similarity - lower) / (upper - lower), of means.
- worst: the least similar subject of a clip, mean over clips; worst_upper likewise for the truth.
- swaps: share of subjects in whose place (by the script) somebody looks more like another one of
  the cast. swaps_truth: what the instruments say of the truth, their floor.
- missing: share of subjects found in fewer than half of the frames that show them.
- motion, background, light: share of subjects (clips) that do (play where) the prompt tells,
  by the oracle; factors: share of identity factors that the oracle reads back right; each beside
  its `_truth`. copy_paste: MultiID-Bench's score, -1 truth, +1 copy of the reference.
- Spread: `*_se` is the standard error over cases (seeds of a case averaged first), `*_sd` the
  standard deviation over seeds (0 for one seed).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from engine import flow
from engine.edit import entry
from engine.encodings import stack
from engine.pipeline import Engine
from engine.sample import Source
from engine.spec import Guidance, Reference, Spec
from engine.vae import to_pixels
from training import measure
from training.measure import Floats, Instruments, Score
from training.world.caption import Caption
from training.world.clip import Clip, sample_clip, sample_script
from training.world.identity import FACTOR_NAMES, differing
from training.world.render import render_clip
from training.world.scene import Scene

Generate = Callable[[Sequence[Clip], Sequence[int]], NDArray[np.uint8]]
"""(clips, one seed for each) -> frames uint8 [N, T, H, W, 3]; sees nothing of a clip but its
caption and references (controls excepted)."""

BATCH = 16
_PLACE = re.compile(r"\b(?:on|at|in) the (?:far left|far right|left|right|middle|center)\b")


@dataclass(frozen=True)
class Case:
    """A clip with what does not depend on the generator: embeddings of its references [S, E] and
    of the truth [S, E], the truth's score, and its similarity to a stranger's references [S]."""

    clip: Clip
    references_SE: Floats
    truth_SE: Floats
    truth: Score
    stranger_S: Floats


def tells_places(scene: Scene, words: Caption) -> bool:
    """Whether the caption says where each character is; one alone is always where it should be."""
    subjects = len(scene.cast)
    return subjects == 1 or len(_PLACE.findall(words.text)) == subjects


def sample_clips(
    num: int, num_subjects: int, first_seed: int = 0, still: bool = False
) -> list[Clip]:
    """The first `num` held-out clips from `first_seed` on whose captions tell the places.

    still: one frame of each, which says nothing about motion.
    """

    asked: dict[str, Any] = {"split": "heldout", "num_subjects": num_subjects, "style": "names"}
    seeds = (
        seed
        for seed in itertools.count(first_seed)
        if tells_places(*sample_script(seed, **asked)[:2])
    )
    return [sample_clip(seed, still=still, **asked) for seed in itertools.islice(seeds, num)]


def prepare(clips: Sequence[Clip], tools: Instruments) -> list[Case]:
    """Measures truth and strangers once; needs at least two clips of equally many subjects."""
    if len(clips) < 2 or len({len(clip.scene.cast) for clip in clips}) != 1:
        raise ValueError("clips: at least two, of equally many subjects, or there is no stranger")
    references = [measure.embed_references(tools, clip.references) for clip in clips]
    cases = []
    for i, (clip, own_SE) in enumerate(zip(clips, references, strict=True)):
        seen = measure.observe(tools, clip.frames)
        truth_SE = measure.portrait(seen, own_SE)
        other = references[(i + 1) % len(references)]
        cases.append(
            Case(
                clip,
                own_SE,
                truth_SE,
                measure.score(seen, clip, own_SE, truth_SE),
                measure.similarity(seen, clip, other),
            )
        )
    return cases


@dataclass(frozen=True)
class Job:
    """The cases `start` to `stop` of one number of subjects, under one seed."""

    num_subjects: int
    seed: int
    start: int
    stop: int


def jobs(
    num_cases: int, seeds: int, subjects: Sequence[int] = (1, 2, 3), batch: int = BATCH
) -> list[Job]:
    """Everything there is to generate, in batches."""
    return [
        Job(num, seed, start, min(start + batch, num_cases))
        for num in subjects
        for seed in range(seeds)
        for start in range(0, num_cases, batch)
    ]


def run_job(
    job: Job, generate: Generate, tools: Instruments, cases: Sequence[Case]
) -> tuple[list[Score], NDArray[np.uint8]]:
    """Generates and judges one batch; `cases` are all of that number of subjects."""
    part = cases[job.start : job.stop]
    noise = [10_007 * job.seed + job.start + i for i in range(len(part))]
    frames = generate([case.clip for case in part], noise)
    scores = [judge(tools, case, clip) for case, clip in zip(part, frames, strict=True)]
    return scores, frames


def evaluate(
    generate: Generate,
    tools: Instruments,
    cases: Sequence[Case],
    seeds: int = 1,
    *,
    batch: int = BATCH,
    on_frames: Callable[[Sequence[Case], NDArray[np.uint8]], None] | None = None,
) -> dict[str, Any]:
    """The figures of one number of subjects, see the module's text.

    on_frames is given each batch of the first seed, for contact sheets.
    """
    scores: list[list[Score]] = [[] for _ in range(seeds)]
    for job in jobs(len(cases), seeds, (len(cases[0].clip.scene.cast),), batch):
        row, frames = run_job(job, generate, tools, cases)
        scores[job.seed] += row
        if on_frames is not None and job.seed == 0:
            on_frames(cases[job.start : job.stop], frames)
    return summarise(scores, cases)


def judge(tools: Instruments, case: Case, frames: NDArray[np.uint8]) -> Score:
    """One generated clip of a case."""
    seen = measure.observe(tools, frames)
    return measure.score(seen, case.clip, case.references_SE, case.truth_SE)


def _numbers(score: Score) -> dict[str, float]:
    return {
        "similarity": float(score.similarity_S.mean()),
        "worst": float(score.similarity_S.min()),
        "swaps": float(score.swapped_S.mean()),
        "missing": float(score.missing_S.mean()),
        "motion": float(score.motion_S.mean()),
        "factors": float(np.nanmean(score.factors_SF)),
        "copy_paste": float(score.copy_S.mean()),
        "background": float(score.background),
        "light": float(score.light),
    }


def summarise(scores: Sequence[Sequence[Score]], cases: Sequence[Case]) -> dict[str, Any]:
    """scores[seed][case] -> means, spreads and bounds."""
    rows = [[_numbers(score) for score in row] for row in scores]
    truth = [_numbers(case.truth) for case in cases]
    result: dict[str, Any] = {}
    for name in rows[0][0]:
        table_KN = np.array([[numbers[name] for numbers in row] for row in rows])
        result[name] = float(table_KN.mean())
        result[f"{name}_se"] = float(table_KN.mean(0).std(ddof=1) / np.sqrt(table_KN.shape[1]))
        result[f"{name}_sd"] = float(table_KN.mean(1).std(ddof=1)) if len(table_KN) > 1 else 0.0
        result[f"{name}_truth"] = float(np.mean([numbers[name] for numbers in truth]))
    result["upper"] = result.pop("similarity_truth")
    result["worst_upper"] = result.pop("worst_truth")
    result["lower"] = float(np.mean([case.stranger_S.mean() for case in cases]))
    # Untrained instruments see no gap at all; that is told by `upper`, not by a division by zero.
    gap = max(result["upper"] - result["lower"], 1e-6)
    result["reached"] = (result["similarity"] - result["lower"]) / gap
    result["reached_se"] = result["similarity_se"] / gap
    result["factor"] = _per_factor(scores)
    return result | {"twins": _twins(scores, cases), "clips": len(cases)}


def _per_factor(scores: Sequence[Sequence[Score]]) -> dict[str, float]:
    """Share of subjects whose factor is read right, for factors that any of them shows."""
    rows_NF = np.concatenate([score.factors_SF for row in scores for score in row])
    seen_F = np.isfinite(rows_NF).sum(0)
    right_F = np.nan_to_num(rows_NF).sum(0)
    return {
        name: float(right / seen)
        for name, right, seen in zip(FACTOR_NAMES, right_F, seen_F, strict=True)
        if seen
    }


def has_twins(clip: Clip) -> bool:
    """Whether two of the cast differ in so few factors that they are near-twins."""
    cast = [role.identity for role in clip.scene.cast]
    return any(len(differing(a, b)) <= 2 for i, a in enumerate(cast) for b in cast[:i])


def _twins(scores: Sequence[Sequence[Score]], cases: Sequence[Case]) -> dict[str, float]:
    """Swaps where near-twins share the stage (`swaps`, `swaps_truth`) and where not (`others`)."""
    twin = np.array([has_twins(case.clip) for case in cases])
    swaps = np.array([[s.swapped_S.mean() for s in row] for row in scores]).mean(0)
    truth = np.array([case.truth.swapped_S.mean() for case in cases])
    if not twin.any() or twin.all():
        return {"clips": float(twin.sum())}
    return {
        "clips": float(twin.sum()),
        "swaps": float(swaps[twin].mean()),
        "swaps_truth": float(truth[twin].mean()),
        "others": float(swaps[~twin].mean()),
        "others_truth": float(truth[~twin].mean()),
    }


# --- generators --------------------------------------------------------------------------------


def from_engine(
    engine: Engine,
    *,
    steps: int | None = None,
    guidance: Guidance | None = None,
    bf16: bool = False,
    begin: Generate | None = None,
    strength: float = 1.0,
) -> Generate:
    """Generates with an engine, a batch at once, at the size and length of the clips.

    Args:
        begin, strength: not from noise, but from these clips with noise added, as an edit of that
            strength does (`engine.edit`); at 0 they only pass through the codec.
        bf16: run the DiT and the VAE under bf16 autocast, several times faster where the machine
            multiplies bf16 in hardware; not the bits that the service gives.
    """

    def generate(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
        given: dict[str, Any] = {} if steps is None else {"steps": steps}
        frames, height, width = clips[0].frames.shape[:3]
        given |= {"num_frames": frames, "height": height, "width": width}
        requests = [request(engine, clip, given) for clip in clips]
        spec = requests[0][0]
        encodings = [engine.encode(*asked) for asked in requests]
        source = None
        if begin is not None:
            pixels = to_pixels(torch.from_numpy(begin(clips, seeds)))
            x0 = torch.cat([engine.encoders.vae.encode(part) for part in pixels.split(4)])
            source = Source(x0, entry(strength, spec.steps) if strength else spec.steps)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            latents = engine.sample(
                stack([full for full, _ in encodings]),
                stack([encodings[0][1]]),
                list(seeds),
                engine.preset.latent_shape(width, height, frames),
                flow.schedule(spec.solver, spec.steps, engine.preset.defaults.shift),
                guidance or Guidance.assumed(engine.preset, engine.readers is not None),
                source=source,
            )
            pictures = [engine.decode(part) for part in latents.split(4)]
        return torch.cat(pictures).numpy()

    return generate


def request(engine: Engine, clip: Clip, given: dict[str, Any]) -> tuple[Spec, list[Reference]]:
    """The clip's caption and pictures as a request, with the fields that are given."""
    names = clip.caption.names
    references = [
        Reference.from_image(name, Image.fromarray(picture))
        for name, picture in zip(names, clip.references, strict=True)
    ]
    return Spec.of(engine.preset, clip.caption.prompt, names, **given), references


def truth(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Control: the ground truth. reached = 1, swaps = the floor."""
    return np.stack([clip.frames for clip in clips])


def exchange(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Control: two of the cast in each other's role. swaps = 2 / subjects, reached = 1."""
    return np.stack([measure.exchanged(clip) for clip in clips])


def strangers(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Control: the right script, played by others. reached = 0."""

    def recast(clip: Clip, seed: int) -> NDArray[np.uint8]:
        other = sample_clip(1_000_000 + seed, split="heldout", num_subjects=len(clip.scene.cast))
        cast = tuple(
            replace(role, identity=stand_in.identity)
            for role, stand_in in zip(clip.scene.cast, other.scene.cast, strict=True)
        )
        return render_clip(replace(clip.scene, cast=cast), *clip.frames.shape[:3])

    return np.stack([recast(clip, seed) for clip, seed in zip(clips, seeds, strict=True)])


def blank(clips: Sequence[Clip], seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Control: nobody there. missing = 1."""
    return np.stack([np.full_like(clip.frames, 200) for clip in clips])


CONTROLS: dict[str, Generate] = {
    "truth": truth,
    "exchange": exchange,
    "strangers": strangers,
    "blank": blank,
}


def draw_sheet(cases: Sequence[Case], frames: NDArray[np.uint8], path: str, rows: int = 12) -> None:
    """Rows of: references, four generated frames, the same four of the truth below them."""
    lines = []
    for case, clip_frames in list(zip(cases, frames, strict=True))[:rows]:
        moments = np.linspace(0, len(clip_frames) - 1, 4).round().astype(int)
        made = np.concatenate([clip_frames[t] for t in moments], 1)
        true = np.concatenate([case.clip.frames[t] for t in moments], 1)
        height = made.shape[0] * 2
        pictures = [Image.fromarray(r).resize((height, height)) for r in case.clip.references]
        shown = [np.asarray(picture) for picture in pictures]
        room = np.full((height, height * 4, 3), 40, np.uint8)
        room[:, : height * len(shown)] = np.concatenate(shown, 1)
        lines.append(np.concatenate([room, np.concatenate([made, true])], 1))
    Image.fromarray(np.concatenate(lines)).save(path)
