"""The plan counts what the engine really does: against torch's own counter, and known figures."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine import plan as planning
from engine.dit import WanDiT
from engine.errors import BackendError
from engine.meter import metered
from engine.plan import CARDS, RUNTIMES, Plan, Stage, decodings, forwards, plan
from engine.plan_vlm import vlm_tokens
from engine.presets import MINIATURE, PHANTOM_1_3B, WAN_1_3B, WAN_14B, Preset
from engine.runtime import Runtime
from engine.spec import Guidance, Spec
from engine.stream import SubjectInputs


def asked(preset: Preset, num: int, **given: object) -> Spec:
    names = tuple(f"s{i}" for i in range(num))
    prompt = " and ".join(f"@{name}" for name in names) or "a place"
    return Spec.of(preset, prompt, names, **given)


def stage(found: Plan, part: str) -> Stage:
    (match,) = [stage for stage in found.stages if part in stage.name]
    return match


@pytest.fixture(scope="module")
def big() -> Plan:
    return plan(WAN_1_3B, asked(WAN_1_3B, 1), CARDS["h200"])


@pytest.mark.parametrize(("num", "stream_time"), [(0, False), (1, False), (3, False), (3, True)])
def test_denoising_is_what_torch_counts_on_real_tensors(num: int, stream_time: bool) -> None:
    preset = replace(MINIATURE, dit=replace(MINIATURE.dit, stream_time=stream_time))
    spec = asked(preset, num, steps=4)
    found = plan(preset, spec, CARDS["h100"])
    dit = WanDiT(preset.dit)
    words = torch.randn(1, 64, 128)
    inputs = None
    if num:
        tokens = vlm_tokens(MINIATURE.vlm, num, 64, 64)
        inputs = SubjectInputs(
            torch.randn(1, num, 16, 16, 16),
            torch.randn(1, num, 128),
            vlm_BVM=torch.randn(1, tokens, 128),
        )
    with torch.no_grad():
        condition = dit.condition(words, inputs)
        counter = FlopCounterMode(display=False)
        # The counter does not know the CPU's flash kernel.
        with counter, sdpa_kernel(SDPBackend.MATH):
            dit.denoise(torch.randn(1, 16, 5, 16, 24), torch.tensor([0.5]), condition)
    counted = stage(found, "denoising: prompt").cost.total
    assert counted == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_wan_1_3b_costs_what_others_counted(big: Plan) -> None:
    """Counted apart from this code, on diffusers' classes: 283.0, 275.4, 4.84 and 2.72 TFLOP."""
    assert stage(big, "denoising: negative").cost.total == pytest.approx(283.0e12, rel=2e-3)
    assert stage(big, "VAE decoder").cost.total == pytest.approx(275.4e12, rel=2e-3)
    assert stage(big, "text encoder").cost.total == pytest.approx(4.84e12, rel=2e-3)
    assert stage(big, "VAE encoder").cost.total == pytest.approx(2.72e12, rel=2e-3)
    assert stage(big, "VLM").cost.total == pytest.approx(12.1e12, rel=0.02)


def test_floor_is_below_what_is_expected_and_published_systems_lie_near(big: Plan) -> None:
    assert 35 < big.floor_s < 38  # 35.8 s for the denoising of a plain text-to-video
    assert 52 < big.expected_s < 64  # 52 to 61.6 s published


def test_weights_are_those_of_the_real_models(big: Plan) -> None:
    assert big.weights["text"] == 2 * 5_680_910_336
    assert big.weights["vae"] == pytest.approx(4 * (53.6e6 + 73.3e6), rel=2e-3)
    assert big.memory["offload=none"] > sum(big.weights.values())


def test_phantom_pays_for_its_references_in_every_forward() -> None:
    """Counted apart from this code: 8.2 % more for one, 34.9 % for four, thrice a step."""
    found = plan(PHANTOM_1_3B, asked(PHANTOM_1_3B, 4), CARDS["h200"])
    assert found.options["dual"] == (50, 50, 50)
    for part in ("denoising: prompt", "denoising: subjects alone", "denoising: negative"):
        assert stage(found, part).cost.total == pytest.approx(1.349 * 283.0e12, rel=2e-3)


def test_14b_is_larger_in_every_way(big: Plan) -> None:
    huge = plan(WAN_14B, asked(WAN_14B, 0), CARDS["rtx-4090"])
    forward = stage(huge, "denoising: negative").cost.total
    assert forward == pytest.approx(1678.4e12, rel=2e-3)
    assert huge.memory["offload=encoders"] > 40e9 and huge.memory["offload=group"] < 24e9
    assert huge.memory["weights=int8,offload=encoders"] < 40e9


@pytest.mark.parametrize(
    ("guidance", "mode", "expected"),
    [
        (Guidance(subject_scale=1.5), "single", (10, 20, 0)),
        (Guidance(), "off", (10, 0, 0)),
        (Guidance(), "single", (10, 10, 0)),
        (Guidance(), "dual", (10, 10, 10)),
        (Guidance(interval=(0.45, 1.0)), "single", (10, 6, 0)),
    ],
)
def test_forwards_follow_the_guidance(
    guidance: Guidance, mode: str, expected: tuple[int, int, int]
) -> None:
    spec = asked(MINIATURE, 1, steps=10, guidance=guidance)
    assert forwards(MINIATURE, spec, mode) == expected
    # Without subjects there is no picture to weigh by itself.
    nobody = asked(MINIATURE, 0, steps=10, guidance=guidance)
    assert forwards(MINIATURE, nobody, mode) == (10, min(expected[1], 10), 0)


def test_stages_without_work_are_not_listed() -> None:
    spec = asked(MINIATURE, 0, steps=2, guidance=Guidance(scale=1.0))
    found = plan(MINIATURE, spec, CARDS["l4"])
    assert not any("negative" in s.name or "picture" in s.name for s in found.stages)


def test_decoding_of_a_long_video_is_what_it_would_be_metered() -> None:
    """Counted from four latent frames; here all eight are run, in diffusers' own decode too."""
    with torch.device("meta"):
        vae = planning._vae(MINIATURE)
    counted = planning.decoding(vae, (16, 8, 16, 24))
    z = torch.empty(1, 16, 8, 16, 24, device="meta")
    assert counted == metered(lambda: deque(vae.stream(z), maxlen=0))
    whole = metered(lambda: vae.model.decode(z))
    assert counted.flops == whole.flops and counted.peak_bytes < whole.peak_bytes


def test_decodings_are_told_from_most_memory_to_least() -> None:
    with torch.device("meta"):
        vae = planning._vae(WAN_14B)
    found = decodings(vae, (16, 21, 90, 160))
    names = ["whole", "stream", "tile=8192", "tile=4096", "tile=2048"]
    assert [way.name for way in found] == names
    peaks = [way.peak_bytes for way in found]
    assert peaks == sorted(peaks, reverse=True)
    # Of a tile, what the same number of cells needs anywhere, and a turn's frames.
    turn = 4 * 4 * 720 * 1280 * 3 * 4
    assert 0.8 * peaks[1] * 4096 / 14400 < peaks[3] - turn < 1.1 * peaks[1] * 4096 / 14400
    work = [way.work for way in found]
    assert work == sorted(work) and work[:2] == [1, 1]


def test_a_longer_video_needs_no_more_memory_to_decode_unless_whole() -> None:
    with torch.device("meta"):
        vae = planning._vae(WAN_1_3B)
    short, long = (decodings(vae, (16, num, 60, 104)) for num in (5, 21))
    assert [way.name for way in short] == [way.name for way in long]
    assert short[1:] == long[1:] and short[0].peak_bytes < long[0].peak_bytes


def test_the_tile_that_is_asked_for_is_counted() -> None:
    usual = replace(MINIATURE.defaults, width=128, height=128, num_frames=5)
    preset = replace(MINIATURE, defaults=usual)
    with torch.device("meta"):
        *_, found = decodings(planning._vae(preset), (16, 2, 32, 32), (700,))
    assert found.name == "tile=700"
    assert planning.work_of(preset, "700")[-1] == ("vae", found.peak_bytes)


@pytest.mark.parametrize("offload", ["none", "encoders", "group"])
def test_a_runtime_of_ones_own_is_counted_beside_the_others(offload: str) -> None:
    own = Runtime(tile="700", offload=offload)
    found = plan(MINIATURE, asked(MINIATURE, 2, width=128, height=128), CARDS["l4"], own)
    *rest, stream = [(s.name, s.cost.peak_bytes) for s in found.stages]
    usual = Runtime(offload=offload)
    assert list(found.memory) == [*RUNTIMES, str(own)]
    # The decoder is the peak under either, and its tile a way to decode that is told, too.
    saved = found.memory[str(usual) or RUNTIMES[0]] - found.memory[str(own)]
    (tiled,) = [way.peak_bytes for way in found.decodings if way.name == "tile=700"]
    assert 0 < saved == stream[1] - max(tiled, *(size for _, size in rest))


def test_precision_and_encoders_elsewhere_count() -> None:
    spec = asked(MINIATURE, 1)

    def bytes_of(text: str) -> int:
        return plan(MINIATURE, spec, CARDS["l4"], Runtime.parse(text)).memory[text]

    weights = plan(MINIATURE, spec, CARDS["l4"]).weights
    assert bytes_of("dtype=fp32") - bytes_of("dtype=bf16") > 0.9 * (
        weights["text"] + weights["dit"] + weights["vlm"]
    )
    away = weights["text"] + weights["vlm"]
    assert bytes_of("offload=none") - bytes_of("encoders=remote") == away


def test_a_runtime_that_is_there_already_is_told_once() -> None:
    spec = asked(MINIATURE, 0)
    for own in (Runtime(), Runtime(offload="group")):
        assert tuple(plan(MINIATURE, spec, CARDS["l4"], own).memory) == RUNTIMES


def test_the_card_is_the_one_that_is_planned_for() -> None:
    spec = asked(MINIATURE, 0)
    found = plan(MINIATURE, spec, CARDS["l4"], Runtime("cuda:1")).memory
    assert found["device=cuda:1"] == found["offload=none"]
    with pytest.raises(BackendError, match="device=cpu is not the card .*, l4"):
        plan(MINIATURE, spec, CARDS["l4"], Runtime("cpu"))
    with pytest.raises(BackendError, match="tile=5: .* too small"):
        plan(MINIATURE, spec, CARDS["l4"], Runtime(tile="5"))


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({}, (96, 64, 17)),
        ({"max_side": 64, "max_pixels": 4096}, (64, 64, 17)),
        ({"max_pixels": 4096}, (64, 64, 17)),
        ({"max_frames": 12}, (96, 64, 9)),
        ({"min_frames": 22}, (96, 64, 25)),
        ({"min_side": 100}, (104, 104, 17)),
        ({"max_steps": 3, "max_guidance": 1.0, "max_fps": 4}, (96, 64, 17)),
    ],
)
def test_work_is_that_of_the_largest_video_that_limits_allow(
    limits: dict[str, int], size: tuple[int, int, int]
) -> None:
    preset = replace(MINIATURE, limits=replace(MINIATURE.limits, **limits))
    found = planning._allowed(preset)
    assert (found["width"], found["height"], found["num_frames"]) == size
    asked(preset, 0, **found, steps=1, fps=1, guidance=Guidance("single", 1.0, 1.0, 1.0)).validate(
        preset.limits
    )


def test_work_below_the_default_is_that_of_the_smaller_video() -> None:
    preset = replace(MINIATURE, limits=replace(MINIATURE.limits, max_side=32, max_guidance=1.0))
    defaults = replace(MINIATURE.defaults, width=32, height=32)
    assert planning.work_of(preset) == planning.work_of(replace(MINIATURE, defaults=defaults))
