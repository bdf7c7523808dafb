"""A whole video on one card: `python -m bench.gpu --json`; stdout is one JSON object.

    peak_tflops      large bf16 products on this card, measured: what `mfu` is a share of
    stages           text (both prompts), pictures (VAE encoder, all of the largest cast),
                     decode_fp32 (as the engine decodes) and decode_bf16: seconds, peak_gb
    denoise          by compile mode and number of subjects: seconds of all steps, first_s (one
                     step, with what is built at the first call), peak_gb, tflops, mfu
    diffusers        stock WanPipeline's denoising without subjects: the same dtype, weights, steps
    vs_diffusers     our fastest mode without subjects / that
    whole_s          by number of subjects: all stages in our fastest mode, decoded in fp32
    targets          whether each was met; null where something else was measured

Weights are random, made on the card; no file is read. FLOPs are those that `engine.plan` counts.
Stages run one after the other, each with its own models only, and after a warm-up. The VLM does not
run: its tokens are random, and an answer with subjects lacks its tenth of a second. `--device cpu`
is for trying the program out on a small preset.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from rich.console import Console
from torch import Tensor, nn

from bench.engine import twin
from engine import families, flow
from engine.attention import use
from engine.compile import MODES, velocity_of
from engine.dit import WanDiT
from engine.encodings import EncodingsBatch
from engine.errors import TroupeError
from engine.placement import DTYPES, Placement, placed
from engine.plan import CARDS, plan
from engine.plan_vlm import vlm_tokens
from engine.presets import PRESETS, Preset
from engine.runtime import Runtime
from engine.sample import Conditions, sample
from engine.spec import Guidance, Spec
from engine.text import build_text_model
from engine.vace import build_dit
from engine.vae import VAE, build_vae

NAMES = ("anna", "bob", "carla", "dave")
# What research/perf.md found reachable for Wan 1.3B on one H200: 81 frames at 480p, 50 steps.
STANDARD = ("wan-1.3b", 832, 480, 81, 50)
TARGETS = {"whole_s 0": 52.0, "whole_s 4": 56.0, "decode_bf16": 2.0, "vs_diffusers": 0.60}


@dataclass
class Clock:
    """Times work on a device, and reads how much memory it took at most."""

    device: torch.device
    seen: dict[str, dict[str, float | None]] = field(default_factory=dict)

    def run(self, work: Callable[[], Any], name: str = "") -> tuple[Any, dict[str, float | None]]:
        """What the work returns, its seconds and its peak_gb (1e9 bytes; None on a CPU)."""
        on_card = self.device.type == "cuda"
        if on_card:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        begun = time.perf_counter()
        result = work()
        if on_card:
            torch.cuda.synchronize(self.device)
        figures: dict[str, float | None] = {"seconds": time.perf_counter() - begun, "peak_gb": None}
        if on_card:
            figures["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        if name:
            self.seen[name] = figures
        return result, figures


def peak_tflops(clock: Clock, dtype: torch.dtype) -> float:
    """The best rate of square products, in 1e12 FLOP/s."""
    side = 8192 if clock.device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=clock.device, dtype=dtype) for _ in range(2))

    def products() -> None:
        for _ in range(10):
            a @ b

    products()
    best = min(float(clock.run(products)[1]["seconds"] or 0) for _ in range(5))
    return 10 * 2 * side**3 / best / 1e12


def random_dit(preset: Preset, place: Placement) -> WanDiT:
    """On the device, no parameter zero; in bf16 as the engine has it."""
    with torch.device(place.device):
        torch.manual_seed(0)
        dit = build_dit(preset.dit).eval().requires_grad_(False)
    dtypes = place.dtypes(dit)
    for name, parameter in dit.named_parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
        parameter.data = parameter.data.to(dtypes(name))
    return dit


def random_vae(preset: Preset, place: Placement) -> VAE:
    with torch.device(place.device):
        model = build_vae(preset.vae)
        return VAE(model, torch.zeros(preset.vae.z_dim), torch.ones(preset.vae.z_dim), preset.vae)


def encode_text(clock: Clock, preset: Preset, place: Placement) -> Tensor:
    """Features of two prompts of full length, [2, T, M]; a row each time, as a request does it."""
    with torch.device(place.device):
        model: nn.Module = build_text_model(preset.text).eval().requires_grad_(False)
    model.to(place.dtype)
    ids = torch.full((1, preset.text.text_len), 7, device=place.device)

    def both() -> Tensor:
        return torch.cat([model(input_ids=ids).last_hidden_state.float() for _ in range(2)])

    both()
    features: Tensor = clock.run(both, "text")[0]
    return features


def encode_pictures(clock: Clock, preset: Preset, spec: Spec, place: Placement) -> Tensor:
    """Latents [1, S, C, H, W] of as many pictures as the spec has names."""
    vae = random_vae(preset, place)
    width, height = preset.reference_size(spec.width, spec.height)
    picture = torch.rand(1, 3, 1, height, width, device=place.device) * 2 - 1

    def all_of_them() -> Tensor:
        latents = [vae.encode(picture) for _ in spec.names]
        return torch.cat(latents, dim=2).transpose(1, 2)

    all_of_them()
    refs: Tensor = clock.run(all_of_them, "pictures")[0]
    return refs


def decode(clock: Clock, preset: Preset, place: Placement, latents_BCFHW: Tensor) -> None:
    vae = random_vae(preset, place)
    for name, dtype in DTYPES.items():
        vae.model.to(dtype)
        vae.decode(latents_BCFHW[:, :, :2])
        clock.run(lambda: vae.decode(latents_BCFHW), f"decode_{name}")


def requests(
    preset: Preset, spec: Spec, features_BTM: Tensor, refs_BSCHW: Tensor, num: int
) -> tuple[EncodingsBatch, EncodingsBatch]:
    """Encodings of a request with `num` subjects, and of its negative prompt."""
    device, config = features_BTM.device, preset.dit
    width, height = preset.reference_size(spec.width, spec.height)

    def batch(row: int, num: int) -> EncodingsBatch:
        seen = vlm_tokens(preset.vlm, num, height, width) if num and config.use_vlm else 0
        return EncodingsBatch(
            text_BTM=features_BTM[row : row + 1],
            refs_BSCHW=refs_BSCHW[:, :num],
            tags_BSM=torch.randn(1, num, config.text_dim, device=device),
            subject_mask_BS=torch.ones(1, num, dtype=torch.bool, device=device),
            vlm_BVM=torch.randn(1, seen, config.vlm_dim, device=device),
            vlm_mask_BV=torch.ones(1, seen, dtype=torch.bool, device=device),
        )

    return batch(0, num), batch(1, 0)


def denoise(
    clock: Clock, dit: WanDiT, preset: Preset, spec: Spec, found: Conditions, mode: str
) -> tuple[Tensor, dict[str, float | None]]:
    """Latents, and the figures of all steps in this mode."""
    velocity = velocity_of(dit, mode)
    shape = preset.latent_shape(spec.width, spec.height, spec.num_frames)
    start = families.noise(preset.family, [spec.seed], shape, len(spec.names)).to(clock.device)

    def steps(num: int) -> Tensor:
        table = flow.schedule(spec.solver, num, preset.defaults.shift)
        return sample(velocity, start, found, table, spec.guidance)

    _, first = clock.run(lambda: steps(1))
    latents, figures = clock.run(lambda: steps(spec.steps))
    return latents, figures | {"first_s": first["seconds"]}


def diffusers_denoise(
    clock: Clock, dit: WanDiT, preset: Preset, spec: Spec, features_BTM: Tensor
) -> dict[str, float | None]:
    """The figures of stock diffusers: its transformer and pipeline, eager, torch's attention."""
    dtype = next(dit.parameters()).dtype
    with torch.device(clock.device):
        theirs: Any = twin(dit)
        theirs = theirs.to(dtype)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=preset.defaults.shift
    )
    pipeline: Any = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=scheduler, transformer=theirs
    )
    pipeline.set_progress_bar_config(disable=True)

    def steps(num: int) -> Any:
        return pipeline(
            prompt_embeds=features_BTM[:1],
            negative_prompt_embeds=features_BTM[1:],
            height=spec.height,
            width=spec.width,
            num_frames=spec.num_frames,
            num_inference_steps=num,
            guidance_scale=spec.guidance.scale,
            output_type="latent",
        )

    steps(1)
    return clock.run(lambda: steps(spec.steps))[1]


def measure(
    preset: Preset, spec: Spec, place: Placement, modes: Sequence[str], casts: Sequence[int],
    against: bool,
) -> dict[str, Any]:  # fmt: skip
    """All figures. spec: of the largest cast. casts: numbers of subjects. against: diffusers too.

    Raises:
        TroupeError: the preset cannot serve the spec, or a mode is not to be had here.
    """
    spec.validate(preset.limits)
    clock = Clock(place.device)
    peak = peak_tflops(clock, place.dtype)
    features = encode_text(clock, preset, place)
    refs = encode_pictures(clock, preset, spec, place) if spec.names else torch.zeros(
        1, 0, preset.dit.latent_dim, 2, 2, device=place.device
    )  # fmt: skip
    dit = random_dit(preset, place)
    found: dict[str, dict[str, Any]] = {mode: {} for mode in modes}
    latents = torch.empty(0)
    for num in casts:
        given = requests(preset, spec, features, refs, num)
        conditions = families.conditions(preset.family, dit, *given, spec.guidance)
        asked = replace(spec, **cast_of(num))
        counted = plan(preset, asked, CARDS["h200"])
        flops = sum(stage.flops for stage in counted.stages if stage.name.startswith("denoising"))
        for mode in modes:
            latents, figures = denoise(clock, dit, preset, asked, conditions, mode)
            rate = flops / float(figures["seconds"] or 1) / 1e12
            found[mode][str(num)] = figures | {"tflops": rate, "mfu": rate / peak}
    result: dict[str, Any] = {"peak_tflops": peak, "denoise": found}
    fastest = {str(num): min(found[m][str(num)]["seconds"] for m in modes) for num in casts}
    if against and 0 in casts:
        result["diffusers"] = diffusers_denoise(clock, dit, preset, spec, features)
        result["vs_diffusers"] = fastest["0"] / float(result["diffusers"]["seconds"] or 1)
    del dit
    decode(clock, preset, place, latents)
    stages = {name: float(figures["seconds"] or 0) for name, figures in clock.seen.items()}
    result["whole_s"] = {
        key: seconds + stages["text"] + stages["decode_fp32"]
        + stages.get("pictures", 0.0) * int(key) / max(len(spec.names), 1)
        for key, seconds in fastest.items()
    }  # fmt: skip
    return result | {"stages": clock.seen}


def judged(result: dict[str, Any], standard: bool) -> dict[str, bool | None]:
    """Whether each of `TARGETS` was met; None where another size or card was measured."""
    reached = {
        **{f"whole_s {num}": seconds for num, seconds in result["whole_s"].items()},
        "decode_bf16": result["stages"]["decode_bf16"]["seconds"],
        "vs_diffusers": result.get("vs_diffusers"),
    }
    return {
        name: reached[name] <= most if standard and reached.get(name) is not None else None
        for name, most in TARGETS.items()
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", default=STANDARD[0], choices=sorted(PRESETS))
    parser.add_argument("--width", type=int, default=0, help="px (the preset's)")
    parser.add_argument("--height", type=int, default=0, help="px (the preset's)")
    parser.add_argument("--frames", type=int, default=0, help="(the preset's)")
    parser.add_argument("--steps", type=int, default=STANDARD[4])
    parser.add_argument("--subjects", default="0,4", help="numbers of subjects (0,4)")
    parser.add_argument("--modes", default="eager,inductor", help=f"of {', '.join(MODES)}")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--attention", default="auto", help="see troupe doctor")
    parser.add_argument("--no-diffusers", action="store_true", help="leave diffusers out")
    parser.add_argument("--json", action="store_true", help="one line of JSON on stdout")
    asked = parser.parse_args(given)
    asked.modes = list(dict.fromkeys(mode.strip() for mode in asked.modes.split(",")))
    unknown = [mode for mode in asked.modes if mode not in MODES]
    if unknown:
        parser.error(f"--modes: {unknown[0]}: each once, of {', '.join(MODES)}")
    try:
        asked.subjects = sorted({int(num) for num in asked.subjects.split(",")})
    except ValueError:
        parser.error(f"--subjects: {asked.subjects}: numbers, as in 0,4")
    if asked.subjects[0] < 0 or asked.subjects[-1] > len(NAMES):
        parser.error(f"--subjects: from 0 to {len(NAMES)}")
    if PRESETS[asked.preset].family != "identity":
        parser.error(f"--preset: {asked.preset} is of another family; this is about identity")
    return asked


def spec_of(asked: argparse.Namespace) -> Spec:
    """The request with the largest cast, solved as Wan and diffusers do."""
    preset = PRESETS[asked.preset]
    sizes = {"width": asked.width, "height": asked.height, "num_frames": asked.frames}
    return Spec.of(
        preset, **cast_of(asked.subjects[-1]), steps=asked.steps, solver="unipc",
        guidance=Guidance(scale=preset.defaults.guidance),
        **{name: value for name, value in sizes.items() if value},
    )  # fmt: skip


def cast_of(num: int) -> dict[str, Any]:
    """Names of `num` subjects, and a prompt with each of them."""
    return {"names": NAMES[:num], "prompt": " ".join(f"@{name}" for name in NAMES[:num]) or "a sea"}


@torch.no_grad()
def main(given: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit status."""
    asked = arguments(given)
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        sys.stderr.write(
            "bench.gpu measures a card, and torch sees none here; to try the program out: "
            "--device cpu --preset miniature --steps 2\n"
        )
        return 1
    preset, spec = PRESETS[asked.preset], spec_of(asked)
    try:
        place = placed(Runtime(device=asked.device, dtype=asked.dtype, attention=asked.attention))
        use(place.device, place.attention)
        result = measure(
            preset, spec, place, asked.modes, asked.subjects, not asked.no_diffusers
        )
    except TroupeError as fault:
        sys.stderr.write(f"{fault}\n")
        return 1
    on_card = place.device.type == "cuda"
    name = torch.cuda.get_device_name(place.device) if on_card else "cpu"
    size = (asked.preset, spec.width, spec.height, spec.num_frames, spec.steps)
    result["targets"] = judged(result, size == STANDARD and "H200" in name)
    result |= {"device": name, "attention": " ".join(place.attention), "size": size}
    result |= {"dtype": asked.dtype, "torch": torch.__version__}
    Console(stderr=True).print_json(json.dumps(result))
    if asked.json:
        sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
