"""What cannot be loaded is refused before or while it is read, with its name and a remedy."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from engine import loading
from engine.attention import Choice
from engine.errors import BackendError, CheckpointError
from engine.folders import MANIFEST, Manifest, save_folder, verify
from engine.loading import check_memory
from engine.memory import footprint, work_here
from engine.pipeline import Engine
from engine.placement import Placement
from engine.plan import work_of
from engine.presets import MINIATURE
from engine.quantize import is_large, stored_bytes
from engine.runtime import Runtime
from engine.weights import CPU, shapes
from tests.engine.conftest import alter
from tests.engine.test_placement import asked


@pytest.fixture
def folder(loud_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(loud_model, tmp_path / "model"))


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("dit.safetensors", "blocks.3.ffn.0.weight"),
        ("text.safetensors", "encoder.final_layer_norm.weight"),
        ("vlm.safetensors", "model.visual.blocks.0.norm1.weight"),
        ("vae.safetensors", "quant_conv.weight"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found_and_named(folder, file, tensor, value):
    spoilt = load_file(folder / file)[tensor].clone()
    spoilt.view(-1)[-1] = value
    alter(folder, file, {tensor: spoilt})
    with pytest.raises(CheckpointError, match=f"{file}: {tensor} holds numbers"):
        Engine.load(folder)


def test_weights_of_another_preset_are_refused_with_both_named(loud_model, tmp_path):
    files = {
        path.name: path for path in loud_model.iterdir() if path.name != MANIFEST
    }
    save_folder(tmp_path / "wrong", Manifest(preset="wan-1.3b"), files)
    told = r"dit.safetensors lacks .*: not the weights of preset wan-1.3b"
    with pytest.raises(CheckpointError, match=told):
        Engine.load(tmp_path / "wrong")


def needing(monkeypatch: pytest.MonkeyPatch, free: int, work: int) -> None:
    monkeypatch.setattr(loading, "free_bytes", lambda device: free)
    monkeypatch.setattr(loading, "work_of", lambda preset, tile: [("dit", work)])


def test_too_little_memory_is_foretold_with_figures_and_a_remedy(loud_model, monkeypatch):
    opened: list[Path] = []
    monkeypatch.setattr(loading, "fill", lambda model, path, *rest: opened.append(path))
    needing(monkeypatch, free=60_000_000, work=30_000_000)
    told = r"miniature needs 0.1\d GB on cpu, 0.06 GB are free; try weights=int8$"
    with pytest.raises(BackendError, match=told):
        Engine.load(loud_model, runtime=Runtime(device="cpu"))
    assert opened == []


def test_work_counts_where_the_weights_alone_would_fit(loud_model, monkeypatch):
    needing(monkeypatch, free=200_000_000, work=10_000_000)
    assert Engine.load(loud_model, runtime=Runtime(device="cpu")).preset == MINIATURE
    needing(monkeypatch, free=200_000_000, work=150_000_000)
    with pytest.raises(BackendError, match="0.20 GB are free"):
        Engine.load(loud_model, runtime=Runtime(device="cpu"))


def test_what_is_small_is_not_counted(loud_model, monkeypatch):
    needing(monkeypatch, free=10**12, work=10**15)
    Engine.load(loud_model, runtime=Runtime(device="cpu"))


@pytest.mark.parametrize(("card", "host"), [(10**6, 10**12), (10**12, 10**6)])
def test_what_is_offloaded_needs_room_too(loud_model, monkeypatch, card, host):
    """On the card for its turn, and on the CPU meanwhile."""
    place = Placement(torch.device("cuda", 0), torch.bfloat16, Choice("native", ""))
    monkeypatch.setattr(loading, "work_of", lambda preset, tile: [("dit", 0)])
    free = {"cuda": card, "cpu": host}
    monkeypatch.setattr(loading, "free_bytes", lambda device: free[device.type])
    with pytest.raises(BackendError, match="on cuda:0" if card < host else "on cpu") as caught:
        check_memory(loud_model, MINIATURE, Runtime(offload="encoders"), place)
    assert ("offload=group" in str(caught.value)) == (card < host)


def advice(folder, monkeypatch, runtime, card, host=10**12, work=("dit", 0)):
    """What is told to try on a card with so many bytes free."""
    place = Placement(torch.device("cuda", 0), torch.bfloat16, Choice("native", ""))
    free = {"cuda": card, "cpu": host}
    monkeypatch.setattr(loading, "free_bytes", lambda device: free[device.type])
    smaller = {"none": 1, "8192": 2, "4096": 4, "2048": 8}
    monkeypatch.setattr(
        loading, "work_of", lambda preset, tile: [(work[0], work[1] // smaller[tile])]
    )
    with pytest.raises(BackendError) as caught:
        check_memory(folder, MINIATURE, Runtime.parse(runtime), place)
    return str(caught.value).partition("; try ")[2]


NOTHING = "a larger card or machine"


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("", "offload=encoders or offload=group or weights=int8"),
        ("compile=inductor", "offload=encoders or weights=int8"),
        ("compile=aoti", "offload=encoders"),
        ("compile=aoti,offload=encoders", NOTHING),
        ("offload=group,weights=int8", NOTHING),
    ],
)
def test_only_what_can_be_had_and_helps_is_advised(loud_model, monkeypatch, runtime, told):
    assert advice(loud_model, monkeypatch, runtime, card=10**6) == told


def test_a_team_is_not_told_to_offload_its_blocks(loud_model, monkeypatch):
    monkeypatch.setattr(loading.td, "is_initialized", lambda: True)
    told = advice(loud_model, monkeypatch, "", card=10**6)
    assert told == "offload=encoders or weights=int8"


@pytest.mark.parametrize(
    ("runtime", "told"),
    [
        ("offload=encoders", "offload=none"),
        ("offload=group", "offload=none or offload=encoders or weights=int8"),
    ],
)
def test_a_host_that_is_short_keeps_less(loud_model, monkeypatch, runtime, told):
    assert advice(loud_model, monkeypatch, runtime, card=10**12, host=10**6) == told


def test_what_is_short_here_is_not_moved_where_it_is_short_too(loud_model, monkeypatch):
    assert advice(loud_model, monkeypatch, "", card=10**6, host=10**6) == "weights=int8"
    card = 10**7
    assert advice(loud_model, monkeypatch, "offload=encoders", card, 10**6).count("none") == 0


@pytest.mark.parametrize(
    ("model", "tile", "told"),
    [("vae", "none", True), ("vae", "2048", False), ("dit", "none", False)],
)
def test_tiles_are_advised_where_decoding_is_the_peak(loud_model, monkeypatch, model, tile, told):
    work = (model, 10**9) if model == "vae" else ("dit", 0)
    found = advice(loud_model, monkeypatch, f"tile={tile}", card=10**6, work=work)
    assert ("tile=4096" in found) == told


def test_offloading_to_the_cpu_saves_nothing_on_the_cpu(loud_model, monkeypatch):
    needed = []
    for offload in ("none", "encoders"):
        needing(monkeypatch, free=10**6, work=0)
        with pytest.raises(BackendError, match=r"needs .* try weights=int8$") as caught:
            Engine.load(loud_model, runtime=Runtime(device="cpu", offload=offload))
        needed.append(str(caught.value))
    assert needed[0] == needed[1]


def test_limits_below_the_default_request_are_counted(folder, monkeypatch):
    manifest = replace(verify(folder), configs={"limits": {"max_side": 64, "max_pixels": 4096}})
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    monkeypatch.setattr(loading, "free_bytes", lambda device: 10**6)
    with pytest.raises(BackendError, match=r"0\.00 GB are free; try weights=int8$"):
        Engine.load(folder, runtime=Runtime(device="cpu"))


def test_the_work_is_that_of_the_largest_default_request():
    work = work_of(MINIATURE)
    assert {model for model, _ in work} == {"dit", "text", "vlm", "vae"}
    assert max(size for model, size in work if model == "vae") > 10_000_000


def test_the_largest_video_is_counted_where_that_is_asked_for(loud_model, monkeypatch):
    """128x128 and 33 frames do not fit where 96x64 and 17 do."""
    runtime, place = Runtime("cpu"), Placement(CPU, torch.float32, Choice("native", ""))
    most = replace(MINIATURE.defaults, width=128, height=128, num_frames=33)
    names = ("dit", "text", "vae", "vlm")
    found = footprint({n: shapes(loud_model / f"{n}.safetensors") for n in names}, runtime, 4)
    usual, large = (
        found.peak(work_here(work_of(preset), runtime, 4))
        for preset in (MINIATURE, replace(MINIATURE, defaults=most))
    )
    assert usual < large
    for free, largest in ((usual, False), (large, True)):
        monkeypatch.setattr(loading, "free_bytes", lambda device, free=free: free)
        check_memory(loud_model, MINIATURE, runtime, place, largest)
        monkeypatch.setattr(loading, "free_bytes", lambda device, free=free: free - 1)
        with pytest.raises(BackendError, match="miniature needs"):
            check_memory(loud_model, MINIATURE, runtime, place, largest)


def test_an_engine_that_serves_is_not_touched_by_a_load_that_fails(folder):
    engine = Engine.load(folder)
    spec, cast = asked(engine)
    before = engine.generate(spec, cast).frames
    alter(folder, "dit.safetensors", {"patch_embedding.bias": torch.full((192,), float("nan"))})
    with pytest.raises(CheckpointError, match="patch_embedding.bias"):
        Engine.load(folder)
    assert (engine.generate(spec, cast).frames == before).all()


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_an_engine_of_small_weights(loud_model, kind):
    pytest.importorskip("torchao")
    full = Engine.load(loud_model, runtime=Runtime(device="cpu", dtype="bf16"))
    small = Engine.load(loud_model, runtime=Runtime(device="cpu", dtype="bf16", weights=kind))
    spec, cast = asked(full)
    frames = [engine.generate(spec, cast).frames for engine in (full, small)]
    apart = abs(frames[0].astype(int) - frames[1].astype(int))
    assert apart.any() and apart.mean() < 12
    names = [n for n, p in small.dit.named_parameters() if is_large(n, p)]
    halves = [sum(stored_bytes(dict(e.dit.named_parameters())[n]) for n in names)
              for e in (full, small)]  # fmt: skip
    assert 0.5 < halves[1] / halves[0] < 0.52
