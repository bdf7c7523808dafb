"""A worker's half of a registry: fixtures of the tests that follow channels. Engines are real,
their weights are random; channels and models lie in a folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.pipeline import Engine
from engine.registry import Address, Registry
from engine.stores import FolderStore
from service.fleet import Fleet
from tests.engine.test_swap import variant
from workers import reload as reload_module
from workers.reload import Reload


@pytest.fixture
def registry(
    tmp_path: Path, random_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Registry:
    """With the random model on its stable channel. A round lasts until all that it has found is
    there, however busy the machine is."""
    monkeypatch.setattr(reload_module, "LOOK_EVERY_S", 60.0)
    found = Registry(FolderStore(tmp_path / "registry"))
    found.channels.move("stable", found.push(random_model))
    return found


def follower(registry: Registry, fleet: Fleet, tmp_path: Path, name: str = "w1") -> Reload:
    address = Address(registry.store.url, "stable")
    return Reload(address, tmp_path / f"cache-{name}", fleet, name)


@pytest.fixture
def reload(registry: Registry, fleet: Fleet, tmp_path: Path) -> Reload:
    return follower(registry, fleet, tmp_path)


@pytest.fixture
def engine(reload: Reload) -> Engine:
    return Engine.load(reload.first())


@pytest.fixture
def pushed(
    registry: Registry, random_model: Path, tmp_path: Path
) -> Callable[[Callable[[dict[str, torch.Tensor]], None]], str]:
    def push(change: Callable[[dict[str, torch.Tensor]], None], **about: object) -> str:
        number = len(list(tmp_path.glob("v*")))
        return registry.push(variant(random_model, tmp_path / f"v{number}", change, **about))

    return push


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in engine.dit.state_dict().items()}
