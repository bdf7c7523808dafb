"""What a step costs against others: `python -m bench.engine --json`; stdout is one JSON object.

    phantom_ratio.{1,4}     a step of Phantom's loop on diffusers' blocks (three forwards) / ours
    equal_pass_ratio.{1,4}  the same with two forwards on either side
    own_phantom.{1,4}       as the first, with our own Phantom in place of diffusers'
    overhead.{1,4}          our step with subjects / our step of plain text-to-video
    vs_diffusers            our text-to-video / diffusers' WanPipeline, whole runs, same scheduler:
                            true_geometry, tokens320, and the larger max_abs_diff of both
    compiled.{inductor,aoti}  a compiled step / an eager one, warm
    batch8_gain             requests a second at batch 8 / at batch 1, on a small shape
    knee                    the same at more batches, as tokens of one request x requests; `tokens`
                            are those of a forward above which more at once stop to pay

All are ratios of CPU time of one thread, taken in turns in one process on the same random weights;
median over the rounds, with the least and the largest beside it, and, where both sides should
compute the same, max_abs_diff (of own_phantom: from diffusers' blocks). The model is small (12
layers of 384) with the true proportion of tokens: references to frames 1 to 21, text at 5 %. What a
ratio at this size says of the real one is told in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

from engine import families, flow
from engine.compile import MODES, velocity_of
from engine.dit import Condition, WanDiT
from engine.encodings import EncodingsBatch
from engine.presets import MINIATURE, DiTConfig
from engine.sample import Conditions, guide, sample
from engine.spec import Guidance
from engine.upstream import diffusers_arguments, diffusers_name

CONFIG = replace(
    MINIATURE.dit, dim=384, ffn_dim=2240, freq_dim=256, text_dim=128, text_len=64, num_heads=6,
    num_layers=12, subject_layers=8, subject_dim=384, subject_ffn_dim=0, vlm_dim=128,
)  # fmt: skip
FRAMES, SIDE = 21, 16  # latents; 64 tokens a frame
BOTH = Guidance("single", 2.5)
PHANTOMS = Guidance("dual")

Work = Callable[[], object]


@dataclass(frozen=True)
class Geometry:
    """Latent frames and side, text tokens, steps of a whole run."""

    frames: int
    side: int
    text_len: int
    steps: int


TRUE = Geometry(FRAMES, SIDE, 64, 2)
TOKENS_320 = Geometry(5, SIDE, 512, 12)  # what is computed once per run counts once in 12 steps
SMALL = Geometry(1, 8, 64, 1)
BATCHED = (SMALL, Geometry(5, SIDE, 64, 1))
BATCHES = (2, 4, 8, 16)
PAYS = 1.05  # so much more a second is worth that a request waits for another


def compare(works: Sequence[tuple[Work, Work]], rounds: int) -> list[dict[str, float]]:
    """For each pair (a, b) the CPU time of a over that of b, in turns: median, least, largest."""
    for pair in works:
        for work in pair:
            work()
    found: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for ratios, (a, b) in zip(found, works, strict=True):
            ratios.append(_seconds(a) / _seconds(b))
    return [
        {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
        for ratios in found
    ]


def _seconds(work: Work) -> float:
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def model(config: DiTConfig) -> WanDiT:
    """A DiT whose every weight is random, the silent ones too."""
    torch.manual_seed(0)
    dit = WanDiT(config)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return dit.eval().requires_grad_(False)


def twin(dit: WanDiT) -> Any:  # which has no types
    """diffusers' transformer with the weights of our base."""
    theirs: Any = WanTransformer3DModel(**diffusers_arguments(dit.config))
    theirs.eval()
    own = {diffusers_name(name): value for name, value in dit.state_dict().items()}
    theirs.load_state_dict({name: own[name] for name in theirs.state_dict()})
    return theirs.requires_grad_(False)


def request(config: DiTConfig, num_subjects: int, side: int) -> EncodingsBatch:
    """Encodings with random contents; references of the video's size, some VLM tokens."""
    torch.manual_seed(1)
    num_vlm = 16 if num_subjects else 0
    return EncodingsBatch(
        text_BTM=torch.randn(1, config.text_len, config.text_dim),
        refs_BSCHW=torch.randn(1, num_subjects, config.latent_dim, side, side),
        tags_BSM=torch.randn(1, num_subjects, config.text_dim),
        subject_mask_BS=torch.ones(1, num_subjects, dtype=torch.bool),
        vlm_BVM=torch.randn(1, num_vlm, config.vlm_dim),
        vlm_mask_BV=torch.ones(1, num_vlm, dtype=torch.bool),
    )


def difference(a: Work, b: Work) -> float:
    """Largest absolute difference of two results, over the rows and frames that both have."""
    left, right = a(), b()
    assert isinstance(left, Tensor) and isinstance(right, Tensor)
    rows, frames = min(len(left), len(right)), min(left.shape[2], right.shape[2])
    return float((left[:rows, :, :frames] - right[:rows, :, :frames]).abs().max())


def noise(config: DiTConfig, geometry: Geometry, rows: int = 1) -> Tensor:
    torch.manual_seed(2)
    shape = (rows, config.latent_dim, geometry.frames, geometry.side, geometry.side)
    return torch.randn(shape)


def our_step(
    dit: WanDiT, family: str, num_subjects: int, guidance: Guidance, geometry: Geometry
) -> Work:
    """One guided step; what is computed once per request has been computed."""
    batch, nobody = (request(dit.config, num, geometry.side) for num in (num_subjects, 0))
    found = families.conditions(family, dit, batch, nobody, guidance)
    x = noise(dit.config, geometry)
    return lambda: guide(dit.denoise, x, 0.7, found, guidance)


def phantom_step(
    theirs: Any, config: DiTConfig, num_subjects: int, geometry: Geometry,
    passes: int,
) -> Work:  # fmt: skip
    """One step of Phantom's loop (`subject2video.py`) on diffusers' blocks; two passes leave out
    the one that sees pictures and the negative prompt."""
    batch, nobody = (request(config, num, geometry.side) for num in (num_subjects, 0))
    refs = batch.refs_BSCHW.transpose(1, 2)
    x, t_B = noise(config, geometry), torch.tensor([700.0])
    seen = torch.cat([x, refs], dim=2)
    blank = torch.cat([x, torch.zeros_like(refs)], dim=2)

    def step() -> Tensor:
        full = theirs(seen, t_B, batch.text_BTM).sample
        empty = theirs(blank, t_B, nobody.text_BTM).sample
        if passes == 2:
            return empty + 2.5 * (full - empty)
        image = theirs(seen, t_B, nobody.text_BTM).sample
        return empty + 5.0 * (image - empty) + 7.5 * (full - image)

    return step


def against_diffusers(dit: WanDiT, geometry: Geometry) -> tuple[Work, Work]:
    """Whole runs of text-to-video: ours (K and V of the prompts included) and WanPipeline's."""
    config = dit.config
    batch, theirs = request(config, 0, geometry.side), twin(dit)
    negative = replace(batch, text_BTM=batch.text_BTM.flip(1))
    scheduler: Any = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(geometry.steps)
    # Its own table of times, so that both walk the same way.
    plan = flow.Schedule(scheduler.sigmas.double(), scheduler.timesteps.double() / 1000, "unipc")
    pipeline: Any = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=theirs
    )
    pipeline.set_progress_bar_config(disable=True)
    start = noise(config, geometry)

    def ours() -> Tensor:
        found = families.conditions("identity", dit, batch, negative, BOTH)
        return sample(dit.denoise, start, found, plan, BOTH)

    def other() -> Tensor:
        result: Tensor = pipeline(
            prompt_embeds=batch.text_BTM,
            negative_prompt_embeds=negative.text_BTM,
            height=geometry.side * 8,
            width=geometry.side * 8,
            num_frames=4 * (geometry.frames - 1) + 1,
            num_inference_steps=geometry.steps,
            guidance_scale=BOTH.scale,
            latents=start,
            output_type="latent",
        ).frames
        return result

    return ours, other


def compiled_pairs(
    dit: WanDiT, geometry: Geometry, modes: Sequence[str]
) -> list[tuple[Work, Work]]:
    """A compiled forward with two subjects, and the eager one."""
    batch, nobody = (request(dit.config, num, geometry.side) for num in (2, 0))
    full = families.conditions("identity", dit, batch, nobody, BOTH).full
    x, t_B = noise(dit.config, geometry), torch.tensor([0.7], dtype=torch.float64)
    return [
        (_forward(velocity_of(dit, mode), x, t_B, full), _forward(dit.denoise, x, t_B, full))
        for mode in modes
    ]


def _forward(velocity: Any, x: Tensor, t_B: Tensor, condition: Condition) -> Work:
    return lambda: velocity(x, t_B, condition)


def batch_pair(dit: WanDiT, geometry: Geometry, rows: int) -> tuple[Work, Work]:
    """A guided step of one request, and one of `rows` requests at once."""
    batch = request(dit.config, 1, geometry.side)
    nobody = request(dit.config, 0, geometry.side)
    one = families.conditions("identity", dit, batch, nobody, BOTH)
    parts: Any = [None if c is None else c.repeated(rows) for c in one]
    many = Conditions(*parts)
    x = noise(dit.config, geometry, rows=rows)
    return (
        lambda: guide(dit.denoise, x[:1], 0.7, one, BOTH),
        lambda: guide(dit.denoise, x, 0.7, many, BOTH),
    )


def tokens_of(config: DiTConfig, geometry: Geometry) -> int:
    """Video tokens of one request."""
    cells = geometry.frames * geometry.side**2
    return cells // math.prod(config.patch)


def knee(gains: Mapping[int, Mapping[int, float]]) -> int:
    """Tokens of a forward above which batching stops to pay; 0 where it never does.

    gains: by tokens of a request and by requests at once, their number a second over that of one
    alone. Twice the requests pay while they come out `PAYS` times as fast.
    """
    found = 0
    for tokens, by_rows in gains.items():
        before = 1.0
        for rows, gain in sorted(by_rows.items()):
            if gain < PAYS * before:
                break
            found, before = max(found, tokens * rows), gain
    return found


def measure(config: DiTConfig, rounds: int, modes: Sequence[str], true: Geometry) -> dict[str, Any]:
    """All figures; `true` is the geometry of the first four."""
    dit = model(config)
    theirs, plain = twin(dit), our_step(dit, "identity", 0, BOTH, true)
    names: list[tuple[str, str]] = []
    works: list[tuple[Work, Work]] = []
    alike: dict[tuple[str, str], tuple[Work, Work]] = {}

    def add(
        name: str, key: str, pair: tuple[Work, Work], same: tuple[Work, Work] | None = None
    ) -> None:
        names.append((name, key))
        works.append(pair)
        if same is not None:
            alike[name, key] = same

    for num in (1, 4):
        ours = our_step(dit, "identity", num, BOTH, true)
        three, two = (phantom_step(theirs, config, num, true, passes) for passes in (3, 2))
        add("phantom_ratio", str(num), (three, ours))
        add("equal_pass_ratio", str(num), (two, ours))
        own = our_step(dit, "phantom", num, PHANTOMS, true)
        add("own_phantom", str(num), (own, ours), same=(own, three))
        add("overhead", str(num), (ours, plain))
    wide = model(replace(config, text_len=TOKENS_320.text_len))
    pairs = {
        "true_geometry": against_diffusers(dit, replace(true, steps=2)),
        "tokens320": against_diffusers(wide, TOKENS_320),
    }
    for key, pair in pairs.items():
        add("vs_diffusers", key, pair, same=pair)
    for mode, pair in zip(modes, compiled_pairs(dit, true, modes), strict=True):
        add("compiled", mode, pair, same=pair)
    batched = [(tokens_of(config, shape), shape, rows) for shape in BATCHED for rows in BATCHES]
    for tokens, shape, rows in batched:
        pair = batch_pair(dit, shape, rows)
        add("knee", f"{tokens}x{rows}", pair, same=pair)
    result: dict[str, Any] = {}
    for (name, key), ratio in zip(names, compare(works, rounds), strict=True):
        if (name, key) in alike:
            ratio["max_abs_diff"] = difference(*alike[name, key])
        result.setdefault(name, {})[key] = ratio
    gains: dict[int, dict[int, float]] = {}
    for tokens, _, rows in batched:
        ratio = result["knee"][f"{tokens}x{rows}"]
        ratio |= {key: rows * ratio[key] for key in ("median", "least", "most")}
        gains.setdefault(tokens, {})[rows] = ratio["median"]
    result["batch8_gain"] = result["knee"][f"{tokens_of(config, SMALL)}x8"]
    result["knee"]["tokens"] = knee(gains)
    result["vs_diffusers"]["max_abs_diff"] = max(
        result["vs_diffusers"][key]["max_abs_diff"] for key in pairs
    )
    return result


def table(result: dict[str, Any]) -> Table:
    """One row per ratio."""
    shown = Table("ratio", "median", "least", "most", "max abs diff")
    for name, rows in result.items():
        if not isinstance(rows, dict):
            continue
        flat = {"": rows} if "median" in rows else rows
        for key, ratio in flat.items():
            cells = ratio.values() if isinstance(ratio, dict) else (ratio,)
            shown.add_row(f"{name} {key}", *(f"{value:.3g}" for value in cells))
    return shown


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of every pair (5)")
    parser.add_argument("--compiled", default="inductor,aoti", help="modes, or nothing")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    if asked.rounds < 1:
        parser.error("--rounds: at least 1")
    asked.compiled = [mode.strip() for mode in asked.compiled.split(",") if mode.strip()]
    for mode in asked.compiled:
        if mode not in MODES or asked.compiled.count(mode) > 1:
            parser.error(f"--compiled: {mode}: each once, of {', '.join(MODES)}")
    return asked


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    asked = arguments(given)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    begun = time.monotonic()
    with console.status("measuring in turns, on one thread"):
        result = measure(CONFIG, asked.rounds, asked.compiled, TRUE)
    result |= {"rounds": asked.rounds, "torch": torch.__version__}
    result["seconds"] = round(time.monotonic() - begun, 1)
    console.print(table(result))
    if asked.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
