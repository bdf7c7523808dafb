"""A worker that only encodes looks where its channel leads, and fetches nothing."""

from pathlib import Path

from engine.encoder import digest_of
from engine.folders import read_manifest
from engine.registry import Address, Registry
from tests.engine.test_swap import louder, variant
from workers.watch import Watch


def test_other_encoders_are_told_until_the_channel_leads_back(
    registry: Registry, random_model: Path, tmp_path: Path, pushed
) -> None:
    watch = Watch(Address(registry.store.url, "stable"))
    own = digest_of(read_manifest(random_model))
    registry.channels.move("stable", pushed(louder))
    assert watch.look(own) == ""
    other = variant(random_model, tmp_path / "o", louder, configs={"limits": {"max_frames": 5}})
    registry.channels.move("stable", registry.push(other))
    assert "needs a new worker" in watch.look(own) and "needs a new worker" in watch.look(own)
    registry.channels.roll_back("stable")
    store = Path(registry.store.url)
    away = store.rename(store.with_name("away"))
    assert "no model" in watch.look(own)  # and it goes on looking
    away.rename(store)
    assert watch.look(own) == ""
