"""Both stores alike; compare-and-swap is one; a store that ignores conditions is found out."""

import threading
from pathlib import Path

import pytest

from engine.channels import Channels
from engine.errors import RegistryError
from engine.stores import FolderStore, S3Store, Store, open_store, probe
from tests import s3


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(range(256)) * 40_000)  # more than one part of an upload
    return path


def test_what_is_written_comes_back(store: Store, big: Path) -> None:
    store.write("models/a/x.bin", big)
    assert b"".join(store.stream("models/a/x.bin")) == big.read_bytes()
    found = store.names("models/")
    assert found.keys() == {"models/a/x.bin"}
    assert found["models/a/x.bin"].size == big.stat().st_size
    store.write("models/ab/y.bin", big)
    assert store.names("models/a/").keys() == {"models/a/x.bin"}
    store.delete("models/a/x.bin")
    store.delete("models/a/x.bin")
    assert store.names("models/").keys() == {"models/ab/y.bin"}


def test_what_is_not_there(store: Store) -> None:
    assert store.read("channels/none", 10) is None
    assert store.names("channels/") == {}
    with pytest.raises(RegistryError):
        list(store.stream("models/none"))


def test_a_small_object_that_is_large_is_not_read_whole(store: Store, big: Path) -> None:
    store.write("channels/x", big)
    with pytest.raises(RegistryError, match="more than 100 bytes"):
        store.read("channels/x", 100)


def test_a_swap_needs_the_mark_that_was_read(store: Store) -> None:
    assert store.swap("channels/x", b"one", None)
    assert not store.swap("channels/x", b"two", None)
    content, mark = store.read("channels/x", 10) or (b"", "")
    assert content == b"one"
    assert store.swap("channels/x", b"two", mark)
    assert not store.swap("channels/x", b"three", mark)
    assert not store.swap("channels/none", b"three", mark)
    assert (store.read("channels/x", 10) or (b"",))[0] == b"two"


def test_of_many_swaps_at_once_one_wins(tmp_path: Path) -> None:
    wins: list[int] = []
    start = threading.Barrier(8)

    def run(number: int) -> None:
        own = FolderStore(tmp_path / "store")
        start.wait()
        if own.swap("channels/x", str(number).encode(), None):
            wins.append(number)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert (FolderStore(tmp_path / "store").read("channels/x", 10) or (b"",))[0] == b"%d" % wins[0]


def test_a_store_that_heeds_conditions_passes(store: Store) -> None:
    probe(store)
    assert store.names("probes/") == {}


def test_a_store_that_ignores_conditions_is_named(tmp_path: Path, big: Path) -> None:
    """rclone's server stores models well, and takes every write for a channel."""
    with s3.rclone(tmp_path / "rclone"):
        store = open_store(f"s3://{s3.new_bucket()}/root")
        store.write("models/a/x.bin", big)
        assert b"".join(store.stream("models/a/x.bin")) == big.read_bytes()
        with pytest.raises(RegistryError, match="does not heed If-None-Match.*no channels"):
            probe(store)


class Forgetful(FolderStore):
    """Heeds that an object must not be there, and not which one must be: clones came to the second
    condition later than to the first."""

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        now = self.read(name, 100)
        return super().swap(name, content, None if mark is None or now is None else now[1])


def test_half_of_the_conditions_is_not_enough(tmp_path: Path) -> None:
    store = Forgetful(tmp_path / "store")
    with pytest.raises(RegistryError, match="does not heed If-Match.*no channels"):
        probe(store)
    with pytest.raises(RegistryError, match="does not heed If-Match"):
        Channels(store).move("stable", "a" * 64)
    assert store.names("channels/") == {} and store.names("probes/") == {}


def test_wrong_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.rclone(tmp_path / "rclone"):
        bucket = s3.new_bucket()
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
        with pytest.raises(RegistryError, match="SignatureDoesNotMatch"):
            S3Store(bucket, "").read("channels/stable", 10)


@pytest.mark.parametrize("url", ["", "http://x/y", "s3://", "file://elsewhere/x"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="neither a folder"):
        open_store(url)


def test_a_name_stays_inside(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no name of this store|not a name"):
        FolderStore(tmp_path / "store").read("../secret", 10)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, big: Path) -> None:
    folder = tmp_path / "store"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "a").write_bytes(b"")  # a file where a folder should be
    with pytest.raises(RegistryError, match="cannot be used"):
        FolderStore(folder).write("models/a/x.bin", big)
    assert [path.name for path in (folder / "models").iterdir()] == ["a"]
