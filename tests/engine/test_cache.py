"""The cache: a hit is bit-equal to its miss, tenants are apart, damage is a miss."""

import os
import re

import pytest
import torch

from engine.cache import EncodingCache
from engine.encodings import Encodings


def made(seed: int = 0) -> Encodings:
    generator = torch.Generator().manual_seed(seed)
    sizes = [(4, 3), (2, 16, 2, 2), (2, 3), (0, 5)]
    return Encodings(*(torch.randn(size, generator=generator) for size in sizes))


class Maker:
    """Counts how often it is asked."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self) -> Encodings:
        self.calls += 1
        return made(self.seed)


def assert_same(one: Encodings, two: Encodings) -> None:
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name]), name


def test_memory_hit():
    cache, maker = EncodingCache(), Maker()
    first = cache.get_or("k", maker)
    assert cache.get_or("k", maker) is first and maker.calls == 1


def test_disk_hit_of_another_process_is_bit_equal(tmp_path):
    maker = Maker()
    miss = EncodingCache(folder=tmp_path).get_or("k", maker)
    hit = EncodingCache(folder=tmp_path).get_or("k", maker)
    assert maker.calls == 1
    assert_same(hit, miss)


def test_scopes_do_not_see_each_other(tmp_path):
    cache, maker = EncodingCache(folder=tmp_path), Maker()
    for scope in ("", "a", "../a", "b"):
        cache.get_or("k", maker, scope)
    assert maker.calls == 4
    # A scope is no path, whatever it holds.
    assert not (tmp_path.parent / "a").exists()
    assert all(re.fullmatch("[0-9a-f]{32}", path.name) for path in tmp_path.iterdir())


def test_least_recently_used_leaves_first():
    cache, makers = EncodingCache(max_items=2), {name: Maker() for name in "abc"}
    for name in "abaca":
        cache.get_or(name, makers[name])
    assert [makers[name].calls for name in "abc"] == [1, 1, 1]
    cache.get_or("b", makers["b"])
    assert makers["b"].calls == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    maker = Maker()
    EncodingCache(folder=tmp_path).get_or("k", maker)
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    path.write_bytes({"flip": content, "cut": content[:-9], "empty": b""}[damage])
    assert_same(EncodingCache(folder=tmp_path).get_or("k", maker), made())
    assert maker.calls == 2
    EncodingCache(folder=tmp_path).get_or("k", maker)
    assert maker.calls == 2 and len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_the_disk_does_not_grow_beyond_its_share(tmp_path):
    EncodingCache(folder=tmp_path).get_or("probe", Maker())
    (probe,) = tmp_path.rglob("*.safetensors")
    os.utime(probe, (0, 0))
    cache = EncodingCache(folder=tmp_path, max_bytes=3 * probe.stat().st_size)
    for number in range(6):
        cache.get_or(f"k{number}", Maker(number))
    left = {path.stem.split("-")[0] for path in tmp_path.rglob("*.safetensors")}
    assert len(left) == 3 and "probe" not in left and "k5" in left


# owners


def files_in(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*"))


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_its_last_owner_leaves_is_gone(tmp_path, on_disk):
    cache, maker = EncodingCache(folder=tmp_path if on_disk else None), Maker()
    for owner in ("t/a", "t/b"):
        cache.get_or("k", maker, "t", owner)
    cache.get_or("other", Maker(), "t", "t/b")
    assert cache.owners() == {"t/a", "t/b"} and maker.calls == 1
    cache.forget({"t/a"})
    cache.get_or("k", maker, "t", "t/b")
    assert cache.owners() == {"t/b"} and maker.calls == 1
    cache.forget({"t/b", "t/c"})
    assert cache.owners() == set()
    cache.get_or("k", maker, "t", "t/d")
    assert maker.calls == 2


def test_forgetting_leaves_no_file_of_any_process(tmp_path):
    here, there = EncodingCache(folder=tmp_path), EncodingCache(folder=tmp_path)
    here.get_or("k", Maker(), "t", "t/a")
    there.get_or("k", Maker(), "t", "t/b")
    (scope,) = tmp_path.iterdir()
    (scope / "k-torn.draft").touch()
    here.forget({"t/a"})
    assert here.owners() == {"t/b"} and len(list(scope.glob("k-*"))) == 2
    there.forget({"t/b"})
    assert files_in(tmp_path) == [scope.relative_to(tmp_path)]


def test_an_owner_that_goes_while_it_is_encoded_can_be_forgotten_again(tmp_path):
    cache = EncodingCache(folder=tmp_path)

    def make():
        cache.forget({"t/a"})
        return made()

    cache.get_or("k", make, "t", "t/a")
    assert cache.owners() == {"t/a"}
    cache.forget({"t/a"})
    assert list(tmp_path.rglob("k*")) == []


def test_what_nobody_owns_stays(tmp_path):
    cache, maker = EncodingCache(folder=tmp_path), Maker()
    cache.get_or("k", maker)
    cache.forget({"", "t/a"})
    cache.get_or("k", maker)
    EncodingCache(folder=tmp_path).get_or("k", maker)
    assert maker.calls == 1


def test_owners_may_have_any_name(tmp_path):
    cache = EncodingCache(folder=tmp_path)
    names = {"../up", "a.b*c?[d]", "ü %2F"}
    for name in names:
        cache.get_or("k", Maker(), "t", name)
    assert cache.owners() == names and not (tmp_path.parent / "up").exists()
    cache.forget(names)
    assert list(tmp_path.rglob("k*")) == []


def test_what_is_pruned_takes_its_marks_along(tmp_path):
    cache = EncodingCache(max_items=1, folder=tmp_path, max_bytes=2000)
    for number in range(4):
        cache.get_or(f"k{number}", Maker(number), "t", f"t/{number}")
    kept = {path.name.split("-")[0] for path in tmp_path.rglob("*.safetensors")}
    assert 0 < len(kept) < 4
    assert {path.stem for path in tmp_path.rglob("*.owners")} == kept
