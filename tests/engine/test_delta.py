"""A delta gives the same bits everywhere, fits into what it is given, and is of its base alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, save, save_file

from engine import delta
from engine.errors import CheckpointError


def tensors(scale: float = 1.0, seed: int = 0, side: int = 40) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b.weight": (side, 3 * side), "b.bias": (side,), "a": (1, 2, side), "c": (4, 2, 3)}
    return {n: scale * torch.randn(s, generator=generator) for n, s in shapes.items()}


def both(change: float = 0.05, seed: int = 1, **sizes: int) -> tuple[dict, dict]:
    base = tensors(**sizes)
    return base, {n: base[n] + x for n, x in tensors(change, seed, **sizes).items()}


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "delta.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("levels", "error"), [(3, 0.5), (5, 0.32), (7, 0.25)])
def test_it_comes_back_near_and_exact(tmp_path: Path, levels: int, error: float) -> None:
    base, tuned = both()
    path = written(tmp_path, delta.encode(base, tuned, 1_000_000, levels))
    found = delta.apply(base, path)
    assert {n: x.shape for n, x in found.items()} == {n: x.shape for n, x in base.items()}
    off = torch.cat([(found[n] - tuned[n]).flatten() for n in base])
    all_of_it = torch.cat([(base[n] - tuned[n]).flatten() for n in base])
    assert float(off.norm() / all_of_it.norm()) < error
    with_more_threads = torch.get_num_threads() + 1
    torch.set_num_threads(with_more_threads)
    try:
        again = delta.apply(base, path)
    finally:
        torch.set_num_threads(with_more_threads - 1)
    assert all(torch.equal(found[n], again[n]) for n in base)
    assert delta.encode(base, tuned, 1_000_000, levels) == path.read_bytes()


def test_zeros_of_both_signs_and_what_does_not_change(tmp_path: Path) -> None:
    base = {"w": torch.tensor([[0.0, -0.0, 1.0], [0.0, -0.0, 2.0]]), "v": torch.ones(3)}
    tuned = {"w": torch.tensor([[-1e-9, -0.0, 1.5], [0.0, -0.0, 2.0]]), "v": torch.ones(3)}
    found = delta.apply(base, written(tmp_path, delta.encode(base, tuned, 10_000)))
    assert torch.equal(found["v"], base["v"]) and torch.equal(found["w"][1], base["w"][1])
    assert float(found["w"][0, 2]) == pytest.approx(1.5, rel=0.1)


def test_1_7_million_numbers_fit_into_550_kb(tmp_path: Path) -> None:
    """Two and a half bits each, noise of which nothing repeats; so near that 28 % are off."""
    base, tuned = both(side=750)
    assert sum(x.numel() for x in base.values()) > 1_680_000
    content = delta.encode(base, tuned, 550_000)
    assert len(content) <= 550_000
    found = delta.apply(base, written(tmp_path, content))
    off = (found["b.weight"] - tuned["b.weight"]).norm()
    assert float(off / (base["b.weight"] - tuned["b.weight"]).norm()) < 0.3


def test_fewer_bytes_are_farther_off(tmp_path: Path) -> None:
    base, tuned = both(side=100)
    offs = []
    for size in (8_000, 6_500, 5_000):
        content = delta.encode(base, tuned, size)
        assert size * 0.85 < len(content) <= size
        found = delta.apply(base, written(tmp_path, content))
        offs.append(float((found["b.weight"] - tuned["b.weight"]).norm()))
    assert offs == sorted(offs) and len(set(offs)) == 3
    with pytest.raises(CheckpointError, match="needs over"):
        delta.encode(base, tuned, 1_010)


def test_it_is_for_its_base_alone(tmp_path: Path) -> None:
    base, tuned = both()
    path = written(tmp_path, delta.encode(base, tuned, 100_000))
    for other in (tensors(seed=9), {**base, "d": torch.ones(1)}, {"a": base["a"]}):
        with pytest.raises(CheckpointError, match="of another base"):
            delta.apply(other, path)


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    base, tuned = both()
    whole = delta.encode(base, tuned, 100_000)
    parts = load(whole)
    path = written(tmp_path, whole)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["delta"])
    bomb = delta._zip(torch.zeros(50_000_000, dtype=torch.uint8))
    cases: list[tuple[dict, dict, str]] = [
        (parts, header | {"format": 2}, "no delta of format"),
        (parts, header | {"levels": 4}, "no delta of format"),
        (parts, header | {"levels": "x"}, "no delta of format"),
        (parts, header | {"levels": 3}, "another size"),
        (parts, header | {"levels": [5]}, "no delta of format"),
        (parts | {"levels": parts["levels"][:-9]}, header, "another size|damaged"),
        (parts | {"levels": bomb}, header, "another size"),
        (parts | {"levels": parts["levels"].flip(0)}, header, "damaged|another size"),
        (parts | {"more": parts["levels"]}, header, "no delta of format"),
        (parts, header | {"tuned": "0" * 64}, "does not give the tensors"),
    ]
    for tensors_, told, reason in cases:
        save_file({k: v.clone() for k, v in tensors_.items()}, path, {"delta": json.dumps(told)})
        with pytest.raises(CheckpointError, match=reason):
            delta.apply(base, path)
    path.write_bytes(save({"w": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="no delta"):
        delta.apply(base, path)


def test_what_cannot_be_told_apart_is_not_encoded() -> None:
    base, tuned = both()
    with pytest.raises(CheckpointError, match="same names and shapes"):
        delta.encode(base, {**tuned, "a": torch.ones(3)}, 100_000)
    with pytest.raises(CheckpointError, match="3, 5 or 7 levels"):
        delta.encode(base, tuned, 100_000, levels=4)
    with pytest.raises(CheckpointError, match="not finite"):
        delta.encode(base, {**tuned, "a": torch.full((1, 2, 40), torch.nan)}, 100_000)
