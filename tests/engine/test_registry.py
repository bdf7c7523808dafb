"""The registry: what comes out is what went in, byte by byte, or nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from engine import registry as registries
from engine.errors import Cancelled, CheckpointError, RegistryError
from engine.folders import MANIFEST, Manifest, save_folder, verify
from engine.registry import Address, Registry, base_of
from engine.stores import FolderStore, Store
from tests.engine.test_signatures import key_pair


def model(folder: Path, number: float = 0.0, **about: object) -> Path:
    """A small model folder; the registry does not ask what a model can do."""
    files = {"dit.safetensors": save({"w": torch.full((300,), number)})}
    files["text_tokenizer.json"] = json.dumps({"version": "1.0", "model": {}}).encode()
    save_folder(folder, Manifest("miniature", **about), files)  # type: ignore[arg-type]
    return folder


def damage(store: Store, name: str, content: bytes, folder: Path) -> None:
    """Put other content in the place of a stored object."""
    (folder / "planted").write_bytes(content)
    store.write(name, folder / "planted")


def test_a_model_comes_back_as_it_was_published(store: Store, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", 1.0, lineage={"recipe": "x"}, evaluation={"y": 1})
    registry = Registry(store)
    digest = registry.push(folder)
    assert digest == verify(folder).digest()
    pulled = registry.pull(digest, tmp_path / "cache")
    assert pulled == tmp_path / "cache" / digest and verify(pulled) == verify(folder)
    for path in folder.iterdir():
        assert (pulled / path.name).read_bytes() == path.read_bytes()
    assert registry.manifest(digest).lineage == {"recipe": "x"}
    assert list(registry.models()) == [digest]
    assert os.listdir(tmp_path / "cache") == [digest]


def test_names_for_a_model(store: Store, tmp_path: Path) -> None:
    registry = Registry(store)
    one, two = (registry.push(model(tmp_path / str(n), n)) for n in (1.0, 2.0))
    registry.channels.move("stable", one)
    assert registry.find("stable") == registry.find(one) == registry.find(one[:10]) == one
    assert registry.find(two[:8]) == two
    registry.channels.move("stable", two)
    assert registry.led("stable") == [two, one]
    assert registry.led(one) == registry.led(one[:10]) == [one]
    for wrong in ("canary", "deadbeef00", "DEADBEEF"):
        with pytest.raises(RegistryError):
            registry.find(wrong)
        with pytest.raises(RegistryError):
            registry.led(wrong)


def test_a_push_that_was_cut_off_is_completed(store: Store, tmp_path: Path) -> None:
    folder, registry = model(tmp_path / "m"), Registry(store)
    digest = registry.push(folder)
    store.delete(f"models/{digest}/manifest.json")
    damage(store, f"models/{digest}/dit.safetensors", b"half", tmp_path)
    assert registry.models() == {}
    with pytest.raises(RegistryError, match="holds no model"):
        registry.pull(digest, tmp_path / "cache")
    assert registry.push(folder) == digest
    registry.pull(digest, tmp_path / "cache")
    content = (folder / "dit.safetensors").read_bytes()
    damage(store, f"models/{digest}/dit.safetensors", content[:-1] + b"?", tmp_path)
    assert registry.push(folder) == digest  # of the same size, and not the same
    registry.pull(digest, tmp_path / "elsewhere")


def test_what_was_changed_in_the_store_is_not_taken(store: Store, tmp_path: Path) -> None:
    folder, registry = model(tmp_path / "m"), Registry(store)
    digest = registry.push(folder)
    at = f"models/{digest}"
    whole = (folder / "dit.safetensors").read_bytes()
    other = verify(model(tmp_path / "other", 2.0)).to_bytes()
    cases = [
        ("dit.safetensors", whole[:-1], "not the file that the manifest lists"),
        ("dit.safetensors", whole[:-1] + b"\x01", "not the file that the manifest lists"),
        ("manifest.json", other, "is another one"),
        ("manifest.json", verify(folder).to_bytes() + b" ", "is another one"),
        ("extra.py", b"import os", "not in the manifest: extra.py"),
    ]
    for name, content, reason in cases:
        damage(store, f"{at}/{name}", content, tmp_path)
        with pytest.raises(CheckpointError, match=reason):
            registry.pull(digest, tmp_path / "cache")
        assert not (tmp_path / "cache" / digest).exists()
        store.delete(f"{at}/{name}")
        if (folder / name).exists():
            store.write(f"{at}/{name}", folder / name)
    registry.pull(digest, tmp_path / "cache")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("extra.py", b"import os", "extra.py is refused"),
        ("config.json", b'{"auto_map": {}}', "config.json is refused"),
        ("dit.safetensors", b"PK\x03\x04 a pickle", "it is a pickle"),
        ("text_tokenizer.json", b'{"auto_map": {}}', "auto_map"),
    ],
)
def test_what_could_be_code_is_not_published_nor_taken(
    tmp_path: Path, name: str, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher refuses, and where one did not, so does whoever pulls."""
    registry = Registry(FolderStore(tmp_path / "store"))
    save_folder(tmp_path / "m", Manifest("miniature"), {name: content})
    with pytest.raises(CheckpointError, match=reason):
        registry.push(tmp_path / "m")
    assert registry.store.names("models/") == {}
    with monkeypatch.context() as patch:
        patch.setattr(registries, "check_listed", lambda manifest: None)
        patch.setattr(registries, "check_file", lambda name, path: None)
        digest = registry.push(tmp_path / "m")
    with pytest.raises(CheckpointError, match=reason):
        registry.pull(digest, tmp_path / "cache")


def test_a_config_that_asks_for_code_is_no_config(tmp_path: Path) -> None:
    configs = {"dit": {"auto_map": "x.y"}}
    save_folder(tmp_path / "m", Manifest("miniature", configs=configs), {})
    with pytest.raises(CheckpointError, match="configs.dit.auto_map is unknown"):
        Registry(FolderStore(tmp_path / "store")).push(tmp_path / "m")


def test_a_damaged_copy_is_fetched_again(tmp_path: Path) -> None:
    registry = Registry(FolderStore(tmp_path / "store"))
    digest = registry.push(model(tmp_path / "m"))
    pulled = registry.pull(digest, tmp_path / "cache")
    before = (pulled / "dit.safetensors").stat().st_ino
    assert registry.pull(digest, tmp_path / "cache") == pulled
    assert (pulled / "dit.safetensors").stat().st_ino == before
    (pulled / "dit.safetensors").write_bytes(b"rotten")
    verify(registry.pull(digest, tmp_path / "cache"))


class Breaking(FolderStore):
    """Its connection breaks in the middle of the first files."""

    left = 2

    def stream(self, name: str) -> Iterator[bytes]:
        for chunk in super().stream(name):
            if self.left:
                self.left -= 1
                yield chunk[:100]
                raise RegistryError("connection lost")
            yield chunk


def test_a_connection_that_breaks_is_tried_again(tmp_path: Path) -> None:
    store = Breaking(tmp_path / "store")
    registry = Registry(store)
    digest = registry.push(model(tmp_path / "m"))
    verify(registry.pull(digest, tmp_path / "cache"))
    store.left = 3
    with pytest.raises(RegistryError, match="connection lost"):
        registry.pull(digest, tmp_path / "other")
    assert os.listdir(tmp_path / "other") == []


def test_with_a_key_only_signed_models_are_taken(store: Store, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    other, _ = key_pair(tmp_path, "other")
    asking = Registry(store, public)
    plain = Registry(store).push(model(tmp_path / "a", 1.0))
    with pytest.raises(RegistryError, match="not signed"):
        asking.pull(plain, tmp_path / "cache")
    false = Registry(store).push(model(tmp_path / "b", 2.0), other)
    with pytest.raises(RegistryError, match="signature is not of"):
        asking.pull(false, tmp_path / "cache")
    true = Registry(store).push(model(tmp_path / "c", 3.0), private)
    verify(asking.pull(true, tmp_path / "cache"))
    Registry(store).pull(true, tmp_path / "cache")
    Registry(store).pull(plain, tmp_path / "cache")  # there from before keys were asked for
    with pytest.raises(RegistryError, match="not signed"):
        asking.pull(plain, tmp_path / "cache")
    assert Registry(store).push(tmp_path / "a", private) == plain  # signed afterwards
    asking.pull(plain, tmp_path / "cache")


def test_another_model_under_a_signed_ones_name_is_not_taken(tmp_path: Path) -> None:
    """Somebody who may write the cache puts a folder there that is whole in itself."""
    private, public = key_pair(tmp_path)
    registry, cache = Registry(FolderStore(tmp_path / "store"), public), tmp_path / "cache"
    digest = registry.push(model(tmp_path / "m", 1.0), private)
    forged = verify(model(cache / digest, 2.0))
    assert forged.digest() != digest
    assert verify(registry.pull(digest, cache)).digest() == digest


def test_a_pull_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    registry, cache = Registry(FolderStore(tmp_path / "store")), tmp_path / "cache"
    digest = registry.push(model(tmp_path / "m"))

    def stop() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        registry.pull(digest, cache, stop)
    assert os.listdir(cache) == []
    pulled = registry.pull(digest, cache)
    with pytest.raises(Cancelled):  # while what is there is hashed: that stays
        registry.pull(digest, cache, stop)
    assert verify(pulled).digest() == digest and os.listdir(cache) == [digest]


def test_an_adapter_needs_its_base(tmp_path: Path) -> None:
    registry = Registry(FolderStore(tmp_path / "store"))
    base = model(tmp_path / "base")
    digest = verify(base).digest()
    adapter = model(tmp_path / "adapter", 1.0, lineage={"base": digest})
    with pytest.raises(RegistryError, match=f"holds no model {digest[:12]}"):
        registry.push(adapter)
    registry.push(base)
    assert base_of(registry.manifest(registry.push(adapter))) == digest
    with pytest.raises(CheckpointError, match=r"lineage\.base must be a digest"):
        base_of(Manifest("miniature", lineage={"base": "../x"}))


def test_what_is_removed_is_gone(store: Store, tmp_path: Path) -> None:
    registry = Registry(store)
    one, two = (registry.push(model(tmp_path / str(n), n)) for n in (1.0, 2.0))
    registry.remove(one)
    assert list(registry.models()) == [two]
    assert all(two in name for name in store.names("models/"))


def test_a_replaced_file_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchanged after it was verified, the verified one goes out."""
    folder = model(tmp_path / "m")
    whole = (folder / "dit.safetensors").read_bytes()

    def exchange(name: str, path: Path) -> None:
        shutil.copy(folder / MANIFEST, folder / "new")
        (folder / "new").rename(folder / "dit.safetensors")

    monkeypatch.setattr(registries, "check_file", exchange)
    registry = Registry(FolderStore(tmp_path / "store"))
    digest = registry.push(folder)
    assert b"".join(registry.store.stream(f"models/{digest}/dit.safetensors")) == whole


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("models/miniature", None),
        ("/srv/models#stable", Address("/srv/models", "stable")),
        ("file:///srv/models#canary", Address("file:///srv/models", "canary")),
        ("s3://b/p?key=/k.pem#stable", Address("s3://b/p", "stable", Path("/k.pem"))),
        ("s3://b#0123abcd", Address("s3://b", "0123abcd")),
    ],
)
def test_addresses(text: str, wanted: Address | None) -> None:
    assert Address.parse(text) == wanted


@pytest.mark.parametrize("text", ["s3://b/p", "s3://b/p?kee=/k#stable", "/srv/models#"])
def test_an_address_says_all(text: str) -> None:
    with pytest.raises(RegistryError, match="must be as in"):
        Address.parse(text)
