"""Channels move one line at a time: none is lost, whoever races, and each can be taken back."""

import threading
from pathlib import Path

import pytest

from engine import channels
from engine.channels import Channel, Channels, Line
from engine.errors import RegistryError
from engine.stores import FolderStore, Store

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_a_channel_leads_where_it_was_moved_last(store: Store) -> None:
    channels = Channels(store)
    assert channels.read("stable") == Channel("stable") and channels.names() == []
    channels.move("stable", A, note="first")
    moved = channels.move("stable", B, share=0.05)
    assert Channels(store).read("stable") == moved
    assert (moved.digest, moved.share) == (B, 0.05)
    assert [(line.digest, line.why, line.note) for line in moved.lines] == [
        (A, "promote", "first"),
        (B, "promote", ""),
    ]
    assert channels.names() == ["stable"]


def test_a_rollback_goes_one_back_each_time(store: Store) -> None:
    channels = Channels(store)
    for digest in (A, B, B, C):
        channels.move("stable", digest)
    assert channels.roll_back("stable").digest == B
    assert channels.roll_back("stable").digest == A
    with pytest.raises(RegistryError, match="no other model before"):
        channels.roll_back("stable")
    channels.move("stable", C)
    assert channels.roll_back("stable").digest == A
    assert [line.why for line in channels.read("stable").lines][-2:] == ["promote", "rollback"]


def test_a_rollback_takes_nothing_back_that_it_was_not_meant_for(store: Store) -> None:
    channels = Channels(store)
    for digest in (A, B, C):
        channels.move("stable", digest)
    with pytest.raises(RegistryError, match=f"leads to {C[:12]} by now, not to {B[:12]}"):
        channels.roll_back("stable", expect=B)
    with pytest.raises(RegistryError, match="look again"):
        channels.move("stable", A, expect=B)
    assert channels.read("stable").digest == C


def test_a_closed_channel_leads_nowhere(store: Store) -> None:
    channels = Channels(store)
    channels.move("canary", A, share=0.1)
    closed = channels.move("canary", "")
    assert (closed.digest, closed.lines[-1].why) == ("", "close")


def test_racing_publishers_lose_no_line(store: Store) -> None:
    errors: list[RegistryError] = []
    start = threading.Barrier(6)

    def publish(number: int) -> None:
        own = Channels(store)
        start.wait()
        try:
            for turn in range(4):
                own.move("stable", f"{number}{turn}" * 32)
        except RegistryError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line.digest for line in Channels(store).read("stable").lines]
    assert errors == []
    assert sorted(found) == sorted(f"{n}{turn}" * 32 for n in range(6) for turn in range(4))
    for number in range(6):  # and each publisher's own in their order
        assert [d for d in found if d[0] == str(number)] == [
            f"{number}{turn}" * 32 for turn in range(4)
        ]


class Deaf(FolderStore):
    """A store that takes every write, as rclone's server does."""

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        found = self.read(name, 1_000_000)
        return super().swap(name, content, None if found is None else found[1])


def test_a_store_without_conditions_gets_no_channels(tmp_path: Path) -> None:
    store = Deaf(tmp_path / "store")
    with pytest.raises(RegistryError, match="does not heed If-None-Match"):
        Channels(store).move("stable", A)
    assert store.names("channels/") == {}


class LostAnswer(FolderStore):
    """Its first write to a channel arrives, its answer does not."""

    lost = False

    def swap(self, name: str, content: bytes, mark: str | None) -> bool:
        stored = super().swap(name, content, mark)
        if name.startswith("channels/") and not self.lost:
            self.lost = True
            raise RegistryError("timed out")
        return stored


def test_a_move_whose_answer_was_lost_is_made_once(tmp_path: Path) -> None:
    store = LostAnswer(tmp_path / "store")
    assert Channels(store).move("stable", A).digest == A
    assert store.lost and len(Channels(store).read("stable").lines) == 1


def test_a_store_that_overwrites_is_found_when_it_is_read_back(tmp_path: Path) -> None:
    class Overwritten(FolderStore):
        def swap(self, name: str, content: bytes, mark: str | None) -> bool:
            stored = super().swap(name, content, mark)
            if name.startswith("channels/"):
                other = Channel("stable", (Line("1", B, "promote"),))
                self._put(name, iter([other.to_bytes()]))
            return stored

    with pytest.raises(RegistryError, match="heeds no conditions: stable was lost"):
        Channels(Overwritten(tmp_path / "store")).move("stable", A)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'{"format": 2, "lines": []}', b'{"format": 1, "lines": [{"id": "x"}]}']
    + [b'{"format": 1, "lines": [{"id": 1, "digest": "", "why": "", "note": "", "share": 1.0,'
       b' "at": ""}]}'],
)  # fmt: skip
def test_what_is_no_channel_is_refused(content: bytes) -> None:
    with pytest.raises(RegistryError, match="channel stable cannot be read"):
        Channel.from_bytes("stable", content)


@pytest.mark.parametrize("name", ["", "Stable", "../x", "a/b", "x" * 33])
def test_a_name_is_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="no channel's name"):
        Channels(FolderStore(tmp_path)).read(name)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_is_a_part(tmp_path: Path, share: float) -> None:
    with pytest.raises(RegistryError, match="share of jobs must be"):
        Channels(FolderStore(tmp_path)).move("canary", A, share=share)


def test_a_note_is_short_and_a_long_history_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Channels(FolderStore(tmp_path))
    with pytest.raises(RegistryError, match="may have 300 characters, not 301"):
        found.move("stable", A, "x" * 301)
    assert not found.read("stable").lines
    monkeypatch.setattr(channels, "MAX_BYTES", 20_000)
    for turn in range(12):
        moved = found.move("stable", f"{turn:064}", "\U0001f600" * 300)  # 12 bytes each
        assert moved.digest == found.read("stable").digest == f"{turn:064}"
    assert 2 <= len(found.read("stable").lines) < 12
