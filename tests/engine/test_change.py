"""A change beside a tensor: what goes in comes out, wrong ones are refused, git keeps little."""

from __future__ import annotations

import subprocess
import zlib

import pytest
import torch

from engine.change import (
    CHANGE,
    CHANGE_STEP,
    SMALL,
    changed,
    changes,
    nearest,
    quantised,
)
from engine.checkpoint import load_strict, on_grid, read_tensors, tensor_bytes
from engine.errors import CheckpointError
from engine.weights import fill, refill, shapes


@pytest.mark.parametrize("spacing", [0.3, 1.6, 4.0, 50.0])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (300, 401)])
def test_what_is_written_is_read_back(shape, spacing) -> None:
    torch.manual_seed(0)
    base, difference = torch.randn(shape), 0.1 * torch.randn(shape)
    parts = changes("w", difference, spacing)
    near = nearest(difference, spacing)
    if not near.any():
        assert parts == {}
        return
    got = changed(base, parts["w" + CHANGE], parts["w" + CHANGE_STEP], "w")
    assert torch.equal(got, base + near)


def test_it_takes_what_information_theory_says() -> None:
    """Normal numbers: bits within a fiftieth of the entropy, a sixth of the square left."""
    torch.manual_seed(0)
    difference = 0.01 * torch.randn(400, 500)
    q, _ = quantised(difference, 1.6)
    share = q.unique(return_counts=True)[1] / q.numel()
    entropy = -float((share * share.log2()).sum())
    bits = 8 * len(changes("w", difference, 1.6)["w" + CHANGE]) / q.numel()
    assert entropy <= bits < 1.02 * entropy and 1.4 < bits < 1.6
    left = (difference - nearest(difference, 1.6)).square().sum() / difference.square().sum()
    assert 0.16 < float(left) < 0.19


def test_the_step_makes_the_error_least() -> None:
    torch.manual_seed(0)
    difference = torch.randn(30_000)
    q, step = quantised(difference, 2.0)
    assert bool(((q.abs() - difference.abs() / 2.0).abs() <= 0.51).all())  # of 1 = the rms, nearly

    def error(step: float) -> float:
        return float((difference - step * q).square().sum())

    assert error(float(step)) < min(error(0.99 * float(step)), error(1.01 * float(step)))


def test_small_tensors_are_changed_in_finer_steps() -> None:
    torch.manual_seed(0)
    left = []
    for num in (SMALL - 1, SMALL):
        difference = torch.randn(num)
        left.append(float((difference - nearest(difference, 1.6)).square().mean()))
    assert left[0] < 0.03 < 0.1 < left[1]


def test_what_lies_far_out_becomes_the_most() -> None:
    difference = torch.ones(100_000)
    difference[5] = 1000.0
    q, _ = quantised(difference, 0.05)
    assert q[5] == 7 and float(q.max()) == 7


def test_no_difference_is_no_entry() -> None:
    assert changes("w", torch.zeros(4, 4), 2.0) == {}


def packed(*pairs: int) -> torch.Tensor:
    """The code of these bytes."""
    return torch.frombuffer(bytearray(zlib.compress(bytes(pairs), wbits=-15)), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("code", "step", "told"),
    [
        (None, torch.ones(1), "one is missing"),
        (packed(112, 112, 112), None, "one is missing"),
        (torch.zeros(1), torch.ones(1), "a row of bytes"),
        (torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1), "a row of bytes"),
        (packed(112, 112, 112), torch.ones(2), "one step"),
        (packed(112, 112, 112), torch.ones(1).cfloat(), "one step"),
        (packed(112, 112, 112), torch.zeros(1), "positive number"),
        (packed(112, 112, 112), torch.tensor([float("inf")]), "positive number"),
        (packed(112, 112), torch.ones(1), "another size"),
        (packed(112, 112, 112, 112), torch.ones(1), "another size"),
        (packed(*[112] * 10**6), torch.ones(1), "another size"),
        (packed(112, 112, 112)[:-1], torch.ones(1), "another size|damaged"),
        (torch.cat([packed(112, 112, 112), packed(0)]), torch.ones(1), "another size"),
        (torch.full((5,), 255, dtype=torch.uint8), torch.ones(1), "damaged"),
        (packed(112, 225, 112), torch.ones(1), "numbers that are none"),
        (packed(112, 112, 0), torch.ones(1), "numbers that are none"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(code, step, told) -> None:
    with pytest.raises(CheckpointError, match=f"dit: w: .*({told})"):
        changed(torch.zeros(1, 5), code, step, "dit: w")


def files(tmp_path) -> tuple[torch.nn.Module, dict[str, torch.Tensor], bytes, bytes]:
    """A layer, what it should become, and the files before and after."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 512)
    old = {k: v for n, x in layer.state_dict().items() for k, v in on_grid(n, x, 3).items()}
    first = tmp_path / "old.safetensors"
    first.write_bytes(tensor_bytes(old))
    base = read_tensors(first)
    difference = {n: 0.01 * torch.randn_like(x) for n, x in base.items()}
    new = old | {k: v for n, d in difference.items() for k, v in changes(n, d, 1.6).items()}
    wanted = {n: base[n] + nearest(d, 1.6) for n, d in difference.items()}
    return layer, wanted, first.read_bytes(), tensor_bytes(new)


def test_every_reader_gives_the_changed_weights(tmp_path) -> None:
    layer, wanted, _, content = files(tmp_path)
    path = tmp_path / "new.safetensors"
    path.write_bytes(content)
    assert read_tensors(path).keys() == wanted.keys()
    for read in (load_strict, refill, fill):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        read(layer, path)
        for name, value in layer.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["weight" + CHANGE, "other" + CHANGE, "other" + CHANGE_STEP])
def test_half_a_change_in_a_file_is_refused(tmp_path, name) -> None:
    content = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    content[name] = torch.zeros(1, dtype=torch.uint8)
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes(content))
    with pytest.raises(CheckpointError, match=f"{name.split('.')[0]}"):
        fill(torch.nn.Linear(3, 2), path)
    with pytest.raises(CheckpointError, match=f"{name.split('.')[0]}"):
        read_tensors(path)


@pytest.mark.parametrize("read", [fill, refill])
def test_a_change_of_no_tensor_is_refused_by_whoever_loads_or_swaps(tmp_path, read) -> None:
    content = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    content |= changes("other", torch.ones(4), 1.0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes(content))
    for call in (lambda: read(torch.nn.Linear(3, 2), path), lambda: shapes(path)):
        with pytest.raises(CheckpointError, match="other.change.* is the step of no tensor"):
            call()


def test_whole_numbers_have_no_change(tmp_path) -> None:
    content = {"count": torch.ones(4, dtype=torch.int32), **changes("count", torch.ones(4), 1.0)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(tensor_bytes(content))
    with pytest.raises(CheckpointError, match="count is torch.int32, which has no change"):
        read_tensors(path)


def test_a_lost_run_leaves_no_change() -> None:
    with pytest.raises(CheckpointError, match="w: the difference holds numbers"):
        changes("w", torch.tensor([1.0, float("nan")]), 1.0)


def test_git_keeps_the_addition_only(tmp_path) -> None:
    """What the format is for: the second version costs the history its change, not a model."""
    _, _, before, after = files(tmp_path)

    def git(*words: str) -> str:
        own = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(tmp_path)]
        return subprocess.run([*own, *words], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    sizes = []
    for content in (before, after):
        (tmp_path / "x.safetensors").write_bytes(content)
        git("add", "x.safetensors")
        git("commit", "-qm", "weights")
        git("gc", "-q", "--aggressive")
        sizes.append(sum(p.stat().st_size for p in (tmp_path / ".git").rglob("*.pack")))
    change = len(after) - len(before)
    assert change < 0.2 * len(before)
    assert sizes[1] - sizes[0] < change + 2_000
