"""The bench of a card runs end to end on a CPU with the miniature; that needs no card."""

from __future__ import annotations

import json

import pytest
import torch

from bench import gpu as bench
from engine import attention
from engine.errors import BackendError
from engine.placement import placed
from engine.plan import CARDS, plan
from engine.presets import PRESETS
from engine.runtime import Runtime

SIZE = ["--frames", "5", "--width", "48", "--height", "32"]
SMALL = ["--preset", "miniature", "--steps", "2", *SIZE]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_everything_is_measured_in_bf16(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*SMALL, "--device", "cpu", "--modes", "eager,inductor", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["stages"]) == {"text", "pictures", "decode_fp32", "decode_bf16"}
    assert set(result["denoise"]) == {"eager", "inductor"}
    for by_cast in result["denoise"].values():
        assert set(by_cast) == {"0", "4"}
        for figures in by_cast.values():
            assert figures["seconds"] > 0 and 0 < figures["mfu"] < 2 and figures["peak_gb"] is None
            rate = figures["mfu"] * result["peak_tflops"]
            assert figures["tflops"] == pytest.approx(rate)
    fastest = min(by_cast["0"]["seconds"] for by_cast in result["denoise"].values())
    assert result["vs_diffusers"] == pytest.approx(fastest / result["diffusers"]["seconds"])
    assert result["whole_s"]["0"] > fastest
    assert set(result["targets"].values()) == {None}  # another size, and no H200
    assert result["dtype"] == "bf16" and result["attention"].startswith("native")


@torch.no_grad()
def test_rates_are_of_what_the_plan_counts() -> None:
    preset, place = PRESETS["miniature"], placed(Runtime(device="cpu", dtype="fp32"))
    spec = bench.spec_of(bench.arguments([*SMALL, "--subjects", "2"]))
    assert spec.names == ("anna", "bob") and spec.guidance.scale == preset.defaults.guidance
    result = bench.measure(preset, spec, place, ["eager"], [2], against=True)
    assert "diffusers" not in result and "vs_diffusers" not in result  # nothing without subjects
    figures = result["denoise"]["eager"]["2"]
    stages = plan(preset, spec, CARDS["h200"]).stages
    flops = sum(stage.flops for stage in stages if stage.name.startswith("denoising"))
    assert figures["tflops"] * figures["seconds"] * 1e12 == pytest.approx(flops)


def test_targets_are_judged_at_their_own_size_only() -> None:
    result = {
        "whole_s": {"0": 51.0, "4": 57.0},
        "stages": {"decode_bf16": {"seconds": 1.0}},
    }
    met = {"whole_s 0": True, "whole_s 4": False, "decode_bf16": True, "vs_diffusers": None}
    assert bench.judged(result, standard=True) == met
    assert set(bench.judged(result, standard=False).values()) == {None}
    preset, *numbers = bench.STANDARD
    spec = bench.spec_of(bench.arguments([]))
    assert [spec.width, spec.height, spec.num_frames, spec.steps] == numbers
    spec.validate(PRESETS[preset].limits)


def test_the_kernel_that_is_asked_for_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card for whom flash3 would be the choice; there is none here, so nothing is measured."""
    used: list[str] = []

    def ended(*_: object) -> None:
        used.append(attention.backend_of(0))
        raise BackendError("no card")

    monkeypatch.setattr(attention, "_CHOSEN", {})
    monkeypatch.setattr(attention, "installed_backends", lambda: frozenset(attention.BACKENDS))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(bench, "measure", ended)
    for asked in ("native", "auto", "sage"):
        assert bench.main([*SMALL, "--attention", asked]) == 1
    assert used == ["native", "flash3", "sage"]


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (
        ("--modes", "nonsense"), ("--subjects", "five"), ("--subjects", "5"),
        ("--preset", "vace-1.3b"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            bench.arguments([option, value])
        assert option in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 1
    assert "torch sees none" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_is_measured_on_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([*SMALL, "--modes", "eager", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert all(figures["peak_gb"] > 0 for figures in result["stages"].values())
