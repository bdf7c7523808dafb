"""A worker follows its channel: between jobs, whole, and never with weights that nobody vouches
for. The engine is real, its weights are random; channels and models lie in a folder."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine import adapters, golden
from engine.channels import Channels
from engine.checkpoint import read_tensors
from engine.errors import BackendError, CheckpointError, RegistryError, SpecError
from engine.folders import DIT, Manifest, read_manifest, save_folder, verify
from engine.pipeline import Engine
from engine.registry import Address, Registry
from service.fleet import Fleet
from service.refs import part_of
from tests.engine.test_signatures import key_pair
from tests.engine.test_swap import louder, picture, spoil, variant
from tests.workers.following import follower, weights_of
from workers.boot import Station
from workers.ready import Ready
from workers.reload import KEPT, Reload
from workers.settings import Settings


def test_a_moved_channel_is_followed_and_taken_back(
    registry: Registry, reload: Reload, engine: Engine, pushed
) -> None:
    first, before = engine.digest, weights_of(engine)
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first
    digest = pushed(louder)
    registry.channels.move("stable", digest)
    reload.round(engine)
    assert engine.digest == first  # not before it is asked to
    reload.fit(engine, "local/v1")
    assert engine.digest == digest and reload.message == ""
    registry.channels.roll_back("stable")
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first
    assert all(torch.equal(x, before[n]) for n, x in weights_of(engine).items())


@pytest.mark.parametrize("golden", [None, [0.0] * 48])
def test_what_cannot_be_served_is_in_quarantine_for_all(
    registry: Registry,
    reload: Reload,
    engine: Engine,
    fleet: Fleet,
    pushed,
    tmp_path: Path,
    golden: list[float] | None,
) -> None:
    """Numbers that are none are found beside the jobs; another picture than the publisher's only
    when it is tried out, and the weights before come back."""
    first, before = engine.digest, weights_of(engine)
    about = {} if golden is None else {"evaluation": {"golden": golden}}
    digest = pushed(spoil(float("nan")) if golden is None else louder, **about)
    registry.channels.move("stable", digest)
    for _ in range(2):
        reload.round(engine)
        reload.fit(engine)
        assert engine.digest == first
        assert all(torch.equal(x, before[n]) for n, x in weights_of(engine).items())
    reason = "not finite" if golden is None else "grey levels from the publisher's"
    assert reason in fleet.quarantined()[digest].reason and reason in reload.message
    other = follower(registry, fleet, tmp_path, "w2")
    assert verify(other.first()).digest() == first  # a new worker begins with the one before
    assert not (tmp_path / "cache-w2" / digest).exists()
    fleet.release(digest)
    reload.round(engine)
    assert digest in fleet.quarantined() or golden  # found out again, here or at the next fit


def test_what_was_damaged_in_the_store_is_not_taken(
    registry: Registry, reload: Reload, engine: Engine, fleet: Fleet, pushed
) -> None:
    first, digest = engine.digest, pushed(louder)
    path = Path(registry.store.url) / "models" / digest / "dit.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    registry.channels.move("stable", digest)
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first
    assert "not the file that the manifest lists" in fleet.quarantined()[digest].reason


def test_a_store_that_is_away_is_no_models_fault(
    registry: Registry, reload: Reload, engine: Engine, fleet: Fleet, pushed
) -> None:
    first, digest = engine.digest, pushed(louder)
    registry.channels.move("stable", digest)
    away = Path(registry.store.url).rename(Path(registry.store.url).with_name("away"))
    Path(registry.store.url).write_text("not a folder")
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first and fleet.quarantined() == {}
    Path(registry.store.url).unlink()
    away.rename(registry.store.url)
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == digest


def test_who_is_not_signed_for_is_not_taken_and_holds_up_nobody(
    registry: Registry, fleet: Fleet, pushed, random_model: Path, tmp_path: Path
) -> None:
    """That is no fault of the model's: this worker may have the wrong key. Its canary goes on."""
    private, public = key_pair(tmp_path)
    registry.push(random_model, private)
    signed = registry.push(variant(random_model, tmp_path / "signed", louder), private)
    address = Address(registry.store.url, "stable", public)
    found = Reload(address, tmp_path / "cache", fleet, "w1")
    engine = Engine.load(found.first())
    first, unsigned = engine.digest, pushed(spoil(2.0))
    registry.channels.move("stable", unsigned)
    registry.channels.move("canary", signed, share=1.0)
    found.round(engine)
    assert "not signed" in found.message and fleet.quarantined() == {}
    found.fit(engine)
    assert engine.digest == first
    found.fit(engine, "local/v1")
    assert engine.digest == signed


def test_a_rollback_asks_nothing_of_the_store_but_where_the_channel_leads(
    registry: Registry, reload: Reload, engine: Engine, pushed
) -> None:
    """The files of the model before are still held: neither fetched nor hashed again."""
    first, digest = engine.digest, pushed(louder)
    reload.round(engine)
    registry.channels.move("stable", digest)
    reload.round(engine)
    reload.fit(engine)
    registry.channels.roll_back("stable")
    (Path(registry.store.url) / "models").rename(Path(registry.store.url) / "away")
    reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first and reload.message == ""


def test_only_a_few_models_are_held(
    registry: Registry, reload: Reload, engine: Engine, pushed
) -> None:
    def handles() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    reload.round(engine)
    each = len(verify(reload._stable.folder).files)  # type: ignore[union-attr]
    before = handles() - each
    for turn in range(2 * KEPT):
        registry.channels.move("stable", pushed(spoil(float(turn))))
        reload.round(engine)
        reload.fit(engine)
    assert len(reload._kept) == KEPT and handles() - before <= KEPT * each
    for ready in reload._kept.values():
        ready.close()
    assert handles() <= before


def test_a_canary_gets_its_share_of_the_jobs_and_a_job_the_same_each_time(
    registry: Registry, reload: Reload, engine: Engine, pushed
) -> None:
    first, digest = engine.digest, pushed(louder)
    registry.channels.move("canary", digest, share=0.25)
    reload.round(engine)
    refs = [f"local/video_{n}" for n in range(2000)]
    got = [reload._for(ref) for ref in refs]
    share = sum(one is not None and one.digest == digest for one in got) / len(refs)
    assert abs(share - 0.25) < 0.04
    chosen = next(ref for ref in refs if part_of(ref) < 0.25)
    other = next(ref for ref in refs if part_of(ref) >= 0.25)
    for ref, wanted in ((chosen, digest), (other, first), (chosen, digest), ("", first)):
        reload.fit(engine, ref)
        assert engine.digest == wanted
    registry.channels.move("canary", "")
    reload.round(engine)
    reload.fit(engine, chosen)
    assert engine.digest == first


@pytest.mark.parametrize("how", ["failures", "likeness"])
def test_a_canary_that_is_worse_is_taken_back_by_itself(
    registry: Registry, reload: Reload, engine: Engine, fleet: Fleet, pushed, how: str
) -> None:
    first, digest = engine.digest, pushed(louder)
    registry.channels.move("canary", digest, share=1.0)
    reload.round(engine)
    for turn in range(20):
        fleet.note(first, False, 0.6 + 0.01 * (turn % 3))
    for turn in range(16):
        reload.fit(engine, f"local/v{turn}")
        assert engine.digest == digest
        reload.note(how == "failures", None if how == "failures" else 0.4)
    reload.round(engine)
    reload.fit(engine, "local/v0")
    assert engine.digest == first
    assert fleet.quarantined()[digest].reason.startswith("canary: ")


def test_weights_that_cannot_come_back_leave_no_engine(
    registry: Registry, reload: Reload, engine: Engine, pushed, tmp_path: Path
) -> None:
    from engine.errors import BackendError

    served = reload._served
    assert served is not None
    digest = pushed(louder, evaluation={"golden": [0.0] * 48})
    registry.channels.move("stable", digest)
    reload.round(engine)
    reload._served = Ready(served.digest, tmp_path / "gone", served.manifest)
    with pytest.raises(BackendError, match="cannot be loaded again"):
        reload.fit(engine)
    assert engine.digest == ""


def test_a_worker_says_which_weights_it_runs(
    registry: Registry, settings: Settings, tmp_path: Path, pushed
) -> None:
    """From the address in its settings to the roster; what it cannot serve, it says beside that."""
    blobs = str(tmp_path / "own" / "blobs")
    own = {"model_dir": f"{registry.store.url}#stable", "blobs_url": blobs}
    station = Station(settings.model_copy(update=own))
    try:
        station.load()
        assert station.state.digest == registry.find("stable")
        digest = pushed(louder)
        registry.channels.move("stable", digest)
        assert station.reload is not None
        station.reload.round(station.engine)
        assert station.fit("local/v1")
        assert [worker.digest for worker in station._roster.present()] == [digest]
        registry.channels.move("stable", pushed(spoil(float("nan"))))
        station.reload.round(station.engine)
        assert station.fit() and station.state.digest == digest
        assert (station.state.state, "not finite" in station.state.message) == ("idle", True)
    finally:
        station.leave()


def test_who_only_encodes_serves_every_model_with_its_encoders(
    registry: Registry, settings: Settings, random_model: Path, tmp_path: Path, pushed
) -> None:
    """Nothing is fetched for it; encoders that are others are told."""
    blobs = str(tmp_path / "own" / "blobs")
    own = {"model_dir": f"{registry.store.url}#stable", "blobs_url": blobs}
    station = Station(settings.model_copy(update=own | {"runtime": "device=cpu,encoders=only"}))
    try:
        station.load()
        assert station.reload is not None and station.encoder is not None
        encoders = station.encoder.digest
        assert (station.state.encoders, station.state.digest) == (encoders, "")
        digest = pushed(louder)
        registry.channels.move("stable", digest)
        station.reload.watch(encoders)
        assert station.reload.message == ""
        pulled = adapters.pull(registry, digest, tmp_path / "elsewhere")
        assert Engine.load(pulled).encoder.digest == encoders
        assert not (settings.model_copy(update=own).model_cache / digest).exists()
        other = variant(random_model, tmp_path / "w", louder, configs={"limits": {"max_frames": 5}})
        registry.channels.move("stable", registry.push(other))
        station.reload.watch(encoders)
        assert "needs a new worker" in station.reload.message
        assert (station.state.state, station.state.message) == ("idle", station.reload.message)
        registry.channels.roll_back("stable")
        station.reload.watch(encoders)
        assert station.reload.message == ""
    finally:
        station.leave()


# --- adapters, by the name of their channel -------------------------------------------------------


@pytest.fixture
def loud(registry: Registry, random_model: Path, tmp_path: Path) -> Path:
    """A base whose videos show its weights, on the stable channel."""
    folder = variant(random_model, tmp_path / "loud", louder)
    registry.channels.move("stable", registry.push(folder))
    return folder


def adapter(registry: Registry, base: Path, target: Path, value: float, **about: object) -> str:
    """Published; its digest. It has another head."""
    tensors = {"head.head.weight": read_tensors(base / DIT)["head.head.weight"].float() + value}
    told = Manifest("miniature", lineage={"base": read_manifest(base).digest()}, **about)
    save_folder(target, told, {"stream.safetensors": save(tensors)})
    return registry.push(target)


def test_a_job_gets_the_adapter_that_it_names(
    registry: Registry, loud: Path, reload: Reload, tmp_path: Path
) -> None:
    engine = Engine.load(reload.first())
    base = engine.digest
    for number, name in enumerate(("anime", "noir"), start=1):
        digest = adapter(registry, loud, tmp_path / name, 0.1 * number)
        registry.channels.move(name, digest)
    registry.channels.move("staging", base)  # a whole model: for other workers
    reload.round(engine)
    assert reload.named == {name: registry.find(name) for name in ("anime", "noir")}
    fresh = {
        name: Engine.load(adapters.pull(registry, registry.find(name), tmp_path / "fresh"))
        for name in ("stable", "anime", "noir")
    }
    assert len({picture(one).tobytes() for one in fresh.values()}) == 3
    for name in ("noir", "anime", "stable", "anime", "noir", "stable"):
        reload.fit(engine, "local/v", "" if name == "stable" else name)
        assert engine.digest == fresh[name].digest
        assert (picture(engine) == picture(fresh[name])).all(), name
    for name in ("staging", "nobody"):
        with pytest.raises(SpecError, match="not served here"):
            reload.fit(engine, "local/v", name)
    assert engine.digest == base


def test_a_new_version_of_an_adapter_is_followed_and_a_bad_one_is_not(
    registry: Registry, loud: Path, reload: Reload, fleet: Fleet, tmp_path: Path
) -> None:
    engine = Engine.load(reload.first())
    one = adapter(registry, loud, tmp_path / "one", 0.1)
    registry.channels.move("noir", one)
    reload.fit(engine, "local/v", "noir")  # no round has been yet: it is looked for
    first = engine.digest
    two = adapter(registry, loud, tmp_path / "two", 0.2)
    registry.channels.move("noir", two)
    reload.round(engine)
    reload.fit(engine, "local/v", "noir")
    assert engine.digest not in {first, read_manifest(loud).digest()}
    second, bad = engine.digest, adapter(registry, loud, tmp_path / "bad", float("nan"))
    registry.channels.move("noir", bad)
    reload.round(engine)
    reload.fit(engine, "local/v", "noir")
    assert engine.digest == second and "not finite" in fleet.quarantined()[bad].reason
    assert reload.named == {"noir": two}
    registry.channels.move("noir", "")
    reload.round(engine)
    with pytest.raises(SpecError, match="not served"):
        reload.fit(engine, "local/v", "noir")


def test_who_names_an_adapter_that_cannot_be_loaded_gets_no_other(
    registry: Registry, loud: Path, reload: Reload, fleet: Fleet, tmp_path: Path
) -> None:
    engine = Engine.load(reload.first())
    wrong = adapter(registry, loud, tmp_path / "a", 0.1, evaluation={"golden": [0.0] * 48})
    registry.channels.move("noir", wrong)
    reload.round(engine)
    before = engine.digest
    with pytest.raises(CheckpointError, match="noir: .*grey levels from the publisher's"):
        reload.fit(engine, "local/v", "noir")
    assert engine.digest == before and wrong in fleet.quarantined()
    with pytest.raises(SpecError, match="quarantine"):
        reload.fit(engine, "local/v", "noir")


def test_a_workers_own_trouble_is_no_fault_of_the_model(
    registry: Registry,
    reload: Reload,
    engine: Engine,
    fleet: Fleet,
    pushed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.channels.move("stable", pushed(louder))
    reload.round(engine)

    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(golden, "check", full)
    with pytest.raises(BackendError, match="out of memory"):
        reload.fit(engine, "local/v1")
    assert engine.digest == "" and not fleet.quarantined()  # nobody takes it for either model


def test_weights_that_cannot_be_written_over_need_a_new_worker_and_no_quarantine(
    registry: Registry,
    reload: Reload,
    engine: Engine,
    fleet: Fleet,
    pushed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = engine.digest
    registry.channels.move("stable", pushed(louder))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "team", object())
        reload.round(engine)
    reload.fit(engine)
    assert engine.digest == first and "needs a new worker" in reload.message
    assert not fleet.quarantined()


def test_a_model_that_a_worker_begins_with_is_tried_out_too(
    registry: Registry, fleet: Fleet, tmp_path: Path, pushed
) -> None:
    good = registry.find("stable")
    wrong = pushed(louder, evaluation={"golden": [0.0] * 48})
    registry.channels.move("stable", wrong)
    begun = follower(registry, fleet, tmp_path)
    engine = Engine.load(begun.first())
    with pytest.raises(BackendError):
        begun.fit(engine, "local/v1")
    assert engine.digest == "" and [*fleet.quarantined()] == [wrong]
    assert verify(begun.first()).digest() == good


def test_a_worker_begins_with_the_model_before_a_damaged_or_unsigned_one(
    registry: Registry, fleet: Fleet, tmp_path: Path, pushed
) -> None:
    good, damaged = registry.find("stable"), pushed(louder)
    registry.channels.move("stable", damaged)
    path = tmp_path / "registry" / "models" / damaged / DIT
    path.write_bytes(path.read_bytes()[:-1])
    assert verify(follower(registry, fleet, tmp_path).first()).digest() == good
    assert [*fleet.quarantined()] == [damaged]


def test_other_channels_models_are_left_to_their_workers(
    registry: Registry, fleet: Fleet, tmp_path: Path, random_model: Path, pushed
) -> None:
    configs = read_manifest(random_model).configs
    other = pushed(louder, configs={**configs, "limits": {"max_frames": 5}})
    registry.channels.move("v2", other)
    registry.channels.move("canary", pushed(louder))
    registry.channels.move("noir", adapter(registry, random_model, tmp_path / "a", 0.1))
    mine = Reload(Address(registry.store.url, "v2"), tmp_path / "cache-v2", fleet, "v2")
    engine = Engine.load(mine.first())
    mine.round(engine)
    assert not fleet.quarantined() and not mine.named and mine._canary is None


def test_a_name_asked_for_while_the_store_is_away_is_asked_again(
    reload: Reload, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RegistryError("S3 is away")

    monkeypatch.setattr(Channels, "read", away)
    with pytest.raises(CheckpointError, match="cannot be seen now"):
        reload.fit(engine, "local/v1", "noir")
