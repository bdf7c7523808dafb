"""Adapters: merged into their base they give one model, the same for everybody."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine import adapters
from engine.change import changes
from engine.checkpoint import on_grid, read_tensors, tensor_bytes
from engine.errors import CheckpointError
from engine.folders import Manifest, save_folder, verify
from engine.registry import Registry
from engine.stores import FolderStore
from tests.engine.test_signatures import key_pair

PARTS = ("blocks.0.self_attn.q.weight", "blocks.0.self_attn.q.bias", "head.head.weight")


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((24, 24), (24,), (8, 24))
    return {n: torch.randn(s, generator=generator) for n, s in zip(PARTS, shapes, strict=True)}


@pytest.fixture(params=["bf16", "grid"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    own = weights()
    if request.param == "grid":
        own = {k: v for n, x in own.items() for k, v in on_grid(n, x, 3).items()}
    files = {"dit.safetensors": tensor_bytes(own), "vae.safetensors": save({})}
    save_folder(tmp_path / "base", Manifest("miniature", evaluation={"of": "base"}), files)
    return tmp_path / "base"


def adapter(base: Path, name: str, content: bytes) -> Path:
    about = Manifest("miniature", lineage={"base": verify(base).digest()}, evaluation={"of": "it"})
    target = base.parent / f"adapter-{name}"
    save_folder(target, about, {name: content})
    return target


def loras(base: Path) -> tuple[bytes, torch.Tensor]:
    down, up = torch.ones(2, 24), torch.full((24, 2), 0.5)
    path = f"diffusion_model.{PARTS[0].removesuffix('.weight')}"
    content = save({f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up})
    return content, up @ down


def test_a_changed_base_loses_nothing_when_merged(tmp_path: Path) -> None:
    """Its sums are finer than the bf16 of its entries."""
    entries = weights()
    entries |= changes(PARTS[0], 0.001 * weights(1)[PARTS[0]], 2.0)
    files = {"dit.safetensors": tensor_bytes(entries), "vae.safetensors": save({})}
    base = tmp_path / "base"
    save_folder(base, Manifest("miniature"), files)
    own = read_tensors(base / "dit.safetensors")
    stream = adapter(base, "stream.safetensors", save({PARTS[2]: own[PARTS[2]]}))
    adapters.merge(base, stream, tmp_path / "merged")
    found = read_tensors(tmp_path / "merged" / "dit.safetensors")
    assert all(torch.equal(found[name], value) for name, value in own.items())


def test_a_delta_gives_one_model(base: Path, tmp_path: Path) -> None:
    own = read_tensors(base / "dit.safetensors")
    tuned = {n: x + 0.1 * weights(1)[n] for n, x in own.items()}
    about = Manifest("", lineage={"recipe": "grpo"}, evaluation={"of": "tuned"})
    made = adapters.save_delta(base, tuned, tmp_path / "adapter", about, 100_000)
    assert made.lineage == {"recipe": "grpo", "base": verify(base).digest()}
    merged = [adapters.merge(base, tmp_path / "adapter", tmp_path / name) for name in "ab"]
    assert merged[0] == merged[1] == verify(tmp_path / "a")
    assert merged[0].digest() not in {verify(base).digest(), made.digest()}
    assert merged[0].evaluation == {"of": "tuned"}
    found = read_tensors(tmp_path / "a" / "dit.safetensors")
    for name, x in tuned.items():
        assert float((found[name] - x).norm() / (own[name] - x).norm()) < 0.4
    linked = (tmp_path / "a" / "vae.safetensors").stat()
    assert linked.st_ino == (base / "vae.safetensors").stat().st_ino


def test_a_lora_is_merged(base: Path, tmp_path: Path) -> None:
    content, change = loras(base)
    merged = adapters.merge(base, adapter(base, "lora.safetensors", content), tmp_path / "m")
    own = read_tensors(base / "dit.safetensors")
    found = read_tensors(tmp_path / "m" / "dit.safetensors")
    assert torch.allclose(found[PARTS[0]], own[PARTS[0]] + change, rtol=0.01, atol=1e-6)
    assert all(torch.equal(found[n], own[n]) for n in PARTS[1:])
    assert merged.digest() == verify(tmp_path / "m").digest()


def test_a_stream_replaces_its_tensors(base: Path, tmp_path: Path) -> None:
    new = torch.full((24,), 2.0)
    folder = adapter(base, "stream.safetensors", save({PARTS[1]: new}))
    adapters.merge(base, folder, tmp_path / "m")
    found = read_tensors(tmp_path / "m" / "dit.safetensors")
    own = read_tensors(base / "dit.safetensors")
    assert torch.equal(found[PARTS[1]], new)
    assert all(torch.equal(found[n], own[n]) for n in (PARTS[0], PARTS[2]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("stream.safetensors", save({"strange": torch.ones(1)}), "strange is no tensor"),
        ("stream.safetensors", save({PARTS[1]: torch.ones(1)}), "is no tensor of this base"),
        ("lora.safetensors", save({"x.lora_A.weight": torch.ones(1, 1)}), "belongs to no weight"),
        ("delta.safetensors", save({"levels": torch.ones(1)}), "no delta"),
        ("vae.safetensors", save({}), "must hold one of"),
    ],
)
def test_what_does_not_fit_is_refused(
    base: Path, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        adapters.merge(base, adapter(base, name, content), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_model_is_no_adapter_and_another_base_is_not_this_one(base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no adapter of"):
        adapters.merge(base, base, tmp_path / "m")
    other = tmp_path / "other"
    save_folder(other, Manifest("miniature"), {"dit.safetensors": tensor_bytes(weights(5))})
    folder = adapter(base, "stream.safetensors", save({PARTS[1]: torch.ones(24)}))
    with pytest.raises(CheckpointError, match="is no adapter of"):
        adapters.merge(other, folder, tmp_path / "m")


def test_a_published_adapter_is_pulled_as_a_model(base: Path, tmp_path: Path) -> None:
    registry = Registry(FolderStore(tmp_path / "store"))
    folder = adapter(base, "stream.safetensors", save({PARTS[1]: torch.ones(24)}))
    whole = registry.push(base)
    digest = registry.push(folder)
    found = verify(adapters.pull(registry, digest, tmp_path / "cache"))
    assert found == adapters.merge(base, folder, tmp_path / "m")
    assert verify(adapters.pull(registry, digest, tmp_path / "cache")) == found
    assert verify(adapters.pull(registry, whole, tmp_path / "cache")).digest() == whole
    forged = Manifest("miniature", lineage=found.lineage)
    files = {"dit.safetensors": save({"w": torch.zeros(1)})}
    target = tmp_path / "cache" / f"{digest}-merged"
    save_folder(target, forged, files, overwrite=True)
    private, public = key_pair(tmp_path)
    for path in (base, folder):
        registry.push(path, private)
    registry = Registry(registry.store, public)
    # Nobody signs what was merged: what this process has not made itself is made again.
    assert verify(adapters.pull(registry, digest, tmp_path / "cache")) == found
    made = (target / "dit.safetensors").stat().st_ino
    adapters.pull(registry, digest, tmp_path / "cache")
    assert (target / "dit.safetensors").stat().st_ino == made
    again = tmp_path / "again"
    save_folder(
        again,
        Manifest("miniature", lineage={"base": digest}),
        {"stream.safetensors": save({PARTS[1]: torch.zeros(24)})},
    )
    with pytest.raises(CheckpointError, match="adapter of an adapter"):
        adapters.pull(registry, registry.push(again, private), tmp_path / "cache")
