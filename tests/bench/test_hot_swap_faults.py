"""Every planted fault is found by who fetches the model, and by nobody before it is planted."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import tiny
from bench.hot_swap_faults import PLANTED, Ground, key_pair, swap_later
from engine import swap
from engine.errors import CheckpointError, RegistryError
from engine.folders import DIT, verify
from engine.pipeline import Engine
from engine.registry import Registry
from engine.stores import FolderStore

REASONS = {
    "truncated": "not the file that the manifest lists",
    "flipped": "not the file that the manifest lists",
    "unsigned": "not signed",
    "code": "not in the manifest: evil.py",
    "config": "config.json is refused",
    "pickle": "dit.safetensors is refused: it is a pickle",
    "nan": "not finite",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.base(tmp_path_factory.mktemp("tiny") / "base")


@pytest.fixture
def ground(base: Path, tmp_path: Path) -> Iterator[Ground]:
    private, public = key_pair(tmp_path)
    registry = Registry(FolderStore(tmp_path / "registry"), public)
    found = Ground(registry, base, tmp_path, private, tmp_path / "cache")
    yield found
    found.close()


@pytest.mark.parametrize("kind", PLANTED)
def test_what_is_planted_is_found(ground: Ground, kind: str) -> None:
    good = ground.push(ground.variant())
    bad = PLANTED[kind](ground)
    engine = Engine.load(ground.registry.pull(good, ground.cache))
    with pytest.raises((CheckpointError, RegistryError), match=REASONS[kind]):
        with swap.checked(engine, ground.registry.pull(bad, ground.cache)):
            pass


@pytest.mark.parametrize("replaced", [True, False])
def test_a_fetched_file_is_changed(ground: Ground, replaced: bool) -> None:
    digest = ground.push(ground.variant())
    swap_later(ground, digest, 0.0, replaced)
    folder = ground.registry.pull(digest, ground.cache)
    over = time.monotonic() + 20
    ground.close()
    assert time.monotonic() < over
    with pytest.raises(CheckpointError, match=DIT):
        verify(folder)
