"""Adapters that lie ready: an engine with one is the engine of the merged folder, bit for bit."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine import adapters, swap
from engine.errors import BackendError
from engine.folders import DIT, Manifest, read_manifest, save_folder
from engine.pipeline import Engine
from engine.resident import Resident
from engine.runtime import Runtime
from tests.engine.test_swap import louder, picture, variant

PARTS = {"one": ("head.head.weight", "blocks.0.self_attn.q.weight"), "two": ("head.head.weight",)}


@pytest.fixture(scope="module")
def folders(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base whose videos show its weights, and two adapters merged into it."""
    place = tmp_path_factory.mktemp("resident")
    found = {"base": variant(random_model, place / "base", louder)}
    tensors = dict(Engine.load(found["base"]).dit.named_parameters())
    about = Manifest("miniature", lineage={"base": read_manifest(found["base"]).digest()})
    for number, (name, parts) in enumerate(PARTS.items(), start=1):
        generator = torch.Generator().manual_seed(number)
        changed = {
            part: tensors[part] + 0.1 * torch.randn(tensors[part].shape, generator=generator)
            for part in parts
        }
        save_folder(place / f"{name}-adapter", about, {"stream.safetensors": save(changed)})
        adapters.merge(found["base"], place / f"{name}-adapter", place / name)
        found[name] = place / name
    return found


@pytest.fixture(params=["fp32", "bf16"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return Runtime(device="cpu", dtype=request.param)


@pytest.fixture
def engine(folders: dict[str, Path], runtime: Runtime) -> Engine:
    return Engine.load(folders["base"], runtime=runtime)


@pytest.fixture
def resident(engine: Engine, folders: dict[str, Path]) -> Iterator[Resident]:
    with ExitStack() as stack:
        found = Resident(stack.enter_context(swap.checked(engine, folders["base"])))
        for name in PARTS:
            found.add(engine, stack.enter_context(swap.checked(engine, folders[name])))
        yield found


def digest(folder: Path) -> str:
    return read_manifest(folder).digest()


def test_each_is_the_merged_folder_loaded(
    engine: Engine, resident: Resident, folders: dict[str, Path], runtime: Runtime
) -> None:
    fresh = {name: Engine.load(folder, runtime=runtime) for name, folder in folders.items()}
    assert len({picture(one).tobytes() for one in fresh.values()}) == 3
    for name in ("one", "two", "base", "two", "one", "base"):
        resident.take(engine, digest(folders[name]))
        assert engine.digest == fresh[name].digest and engine.files == fresh[name].files
        own = engine.dit.state_dict()
        assert all(torch.equal(x, own[n]) for n, x in fresh[name].dit.state_dict().items()), name
        assert (picture(engine) == picture(fresh[name])).all()


def test_only_what_they_change_is_kept(engine: Engine, resident: Resident) -> None:
    own = dict(engine.dit.named_parameters())
    sizes = {name: x.numel() * x.element_size() for name, x in own.items()}
    changed = [name for parts in PARTS.values() for name in parts]
    wanted = sum(sizes[name] for name in changed) + sum(sizes[name] for name in PARTS["one"])
    assert resident.num_bytes == wanted < sum(sizes.values()) / 10


def test_what_does_not_lie_ready_is_not_taken(
    engine: Engine, resident: Resident, folders: dict[str, Path], random_model: Path
) -> None:
    before = engine.digest
    with pytest.raises(BackendError, match="does not lie ready"):
        resident.take(engine, digest(random_model))
    resident.keep([digest(folders["two"])])
    with pytest.raises(BackendError, match="does not lie ready"):
        resident.take(engine, digest(folders["one"]))
    assert engine.digest == before and before in resident and digest(folders["two"]) in resident
    swap.swap(engine, random_model)
    with pytest.raises(BackendError, match="does not lie ready"):
        resident.take(engine, before)
    assert engine.digest == digest(random_model)


def test_it_is_quicker_than_from_the_disk(
    engine: Engine, resident: Resident, folders: dict[str, Path]
) -> None:
    def seconds(name: str, ready: bool) -> float:
        began = time.perf_counter()
        if ready:
            resident.take(engine, digest(folders[name]))
        else:
            swap.swap(engine, folders[name])
        return time.perf_counter() - began

    times = {ready: [seconds(n, ready) for n in ("one", "two") * 3] for ready in (True, False)}
    assert min(times[True]) < min(times[False]) / 3
    assert DIT in engine.files
