"""Weights go from the file into the model, all of them, once, and nothing else does."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from engine.checkpoint import GRID_STEP, load_strict, on_grid, tensor_bytes
from engine.dit import WanDiT
from engine.errors import CheckpointError
from engine.text import build_text_model
from engine.vae import build_vae
from engine.vlm import SPECIALS, build_vlm
from engine.weights import fill, without_contents
from tests.engine.conftest import TOY, TOY_PRESET, random_dit

ROOT = Path(__file__).resolve().parents[2]
IDS = {name: number for number, name in enumerate(SPECIALS)}
BUILDS = {
    "dit": lambda: WanDiT(TOY),
    "text": lambda: build_text_model(TOY_PRESET.text),
    "vae": lambda: build_vae(TOY_PRESET.vae),
    "vlm": lambda: build_vlm(TOY_PRESET.vlm, IDS),
}


def saved(module: nn.Module, path: Path) -> Path:
    save_file({name: p.data.contiguous() for name, p in module.named_parameters()}, path)
    return path


@pytest.mark.parametrize("kind", BUILDS)
def test_a_model_without_contents_is_filled_to_the_same_bits(kind, tmp_path):
    whole = BUILDS[kind]()
    path = saved(whole, tmp_path / "x.safetensors")
    with without_contents():
        empty = BUILDS[kind]()
    assert all(p.is_meta for p in empty.parameters())
    fill(empty, path)
    assert not any(p.requires_grad for p in empty.parameters())
    # Everything by every name: tied weights and what no checkpoint holds as well.
    for names in ("named_parameters", "named_buffers"):
        wanted = dict(getattr(whole, names)(remove_duplicate=False))
        found = dict(getattr(empty, names)(remove_duplicate=False))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
    assert len(list(empty.parameters())) == len(list(whole.parameters()))


def test_building_is_as_before_afterwards():
    with pytest.raises(ZeroDivisionError), without_contents():
        raise ZeroDivisionError
    assert not nn.Linear(2, 2).weight.is_meta


def test_what_other_threads_build_meanwhile_has_contents():
    built = []
    with without_contents(), ThreadPoolExecutor(1) as pool:
        built = [nn.Linear(2, 2), pool.submit(nn.Linear, 2, 2).result()]
    assert [layer.weight.is_meta for layer in built] == [True, False]


def test_threads_that_build_leave_all_as_it_was():
    register = nn.Module.register_parameter

    def build(_: int) -> bool:
        with without_contents():
            return nn.Linear(2, 2).weight.is_meta

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(build, range(64)))
    assert nn.Module.register_parameter is register


def test_a_grid_is_read_as_load_strict_reads_it(tmp_path):
    path = tmp_path / "x.safetensors"
    parts: dict[str, torch.Tensor] = {}
    for name, value in random_dit(TOY).state_dict().items():
        parts |= on_grid(name, value, 12)
    path.write_bytes(tensor_bytes(parts))
    made, wanted = WanDiT(TOY), WanDiT(TOY)
    fill(made, path)
    load_strict(wanted, path)
    for name, value in wanted.state_dict().items():
        assert torch.equal(made.state_dict()[name], value), name


def test_each_parameter_has_its_own_precision_and_buffers_keep_theirs(tmp_path):
    whole = random_dit(TOY)
    with without_contents():
        made = WanDiT(TOY)
    path = saved(whole, tmp_path / "x.safetensors")
    fill(made, path, dtype_of=lambda n: torch.float64 if n.startswith("head") else torch.bfloat16)
    assert torch.equal(made.head.head.weight, whole.head.head.weight.double())
    assert torch.equal(made.blocks[0].ffn[0].weight, whole.blocks[0].ffn[0].weight.bfloat16())
    assert torch.equal(made.rope.turns, whole.rope.turns)


def test_nothing_points_to_the_file(tmp_path):
    """What was verified is what serves, also when somebody writes to the file later."""
    layer = nn.Linear(64, 64)
    path = saved(layer, tmp_path / "x.safetensors")
    with without_contents():
        made = nn.Linear(64, 64)
    fill(made, path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\xff" * size)
    assert torch.equal(made.weight, layer.weight)


# In a process of its own, whose allocator keeps nothing of what was freed before.
CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from engine.weights import fill, without_contents

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

before, seen = held(), []
with without_contents():
    model = nn.Sequential(*(nn.Linear(2048, 1024, bias=False) for _ in range(12)))
empty = held() - before
fill(
    model,
    Path(sys.argv[1]),
    dtype_of=lambda name: torch.bfloat16,
    shrink=lambda name, weight: seen.append(held() - before) or weight,
)
print(empty, max(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_it_takes_the_model_and_one_tensor(tmp_path):
    """Twelve layers of 4 MB in bf16, 8 MB each in the file: 48 MB, one in hand, and a little."""
    path = tmp_path / "x.safetensors"
    save_file({f"{n}.weight": torch.randn(1024, 2048) for n in range(12)}, path)
    command = [sys.executable, "-c", CHILD, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    empty, most = map(int, done.stdout.split())
    assert empty < 8 and 44 <= most <= 48 + 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"weight": None}, "lacks weight"),
        ({"more": torch.ones(1)}, "has the unknown more"),
        ({"weight": torch.ones(3, 2)}, r"another shape: weight is \(3, 2\), not \(2, 3\)"),
        ({"bias": torch.tensor([1.0, float("nan")])}, "bias holds numbers that are not finite"),
        ({"bias": torch.tensor([1.0, float("-inf")])}, "bias holds numbers that are not finite"),
        ({"bias": torch.tensor([1, 2])}, "bias is torch.int64, not a floating type"),
        ({"weight": torch.ones(2, 3, dtype=torch.int8)}, "weight is torch.int8"),
        ({"weight" + GRID_STEP: torch.ones(1)}, "weight.grid_step is the step of no int8 tensor"),
        ({"other" + GRID_STEP: torch.ones(1)}, "other.grid_step is the step of no tensor"),
    ],
)
def test_another_file_is_refused_and_the_tensor_named(tmp_path, change, told):
    tensors = {"weight": torch.ones(2, 3), "bias": torch.ones(2)} | change
    path = tmp_path / "dit.safetensors"
    save_file({name: x for name, x in tensors.items() if x is not None}, path)
    with pytest.raises(CheckpointError, match=f"dit.safetensors:? (has )?{told}"):
        fill(nn.Linear(3, 2), path)


def test_numbers_too_large_for_the_precision_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.full((1, 1), 3.4e38), "bias": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="weight holds numbers that are not finite"):
        fill(nn.Linear(1, 1), path, dtype_of=lambda name: torch.bfloat16)


def test_half_a_file_is_refused(tmp_path):
    path = saved(nn.Linear(8, 8), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="cannot read .*x.safetensors"):
        fill(nn.Linear(8, 8), path)
