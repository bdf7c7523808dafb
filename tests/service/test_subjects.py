"""Subjects that are kept, over a real Redis."""

from collections.abc import Iterator

import pytest

from service import subjects
from service.errors import NotFound, RequestError
from service.ledger import connect
from service.subjects import Subject, Subjects, home
from tests.service.rig import keys_of
from workers.settings import Settings


@pytest.fixture
def kept(settings: Settings) -> Iterator[Subjects]:
    client = connect(settings)
    yield Subjects(client, settings)
    client.close()


def test_what_is_added_can_be_read(kept: Subjects) -> None:
    added = kept.add("t/subj_1", "Mossy the turtle", ("k1", "k2"), "self")
    assert kept.read("t/subj_1") == added
    assert (added.id, added.images, added.consent) == ("subj_1", ("k1", "k2"), "self")
    assert added.created_ms > 1.7e12
    assert home(added.ref) == "t/t/subjects/subj_1"


def test_another_tenants_is_unknown(kept: Subjects) -> None:
    kept.add("t/subj_1", "anna", ("k",))
    for ref in ("u/subj_1", "t/subj_2", "t/"):
        with pytest.raises(NotFound, match="There is no subject"):
            kept.read(ref)
    assert kept.page("u", None, 9, True) == ([], False)


def test_pages_cover_everything_once_in_both_orders(kept: Subjects) -> None:
    refs = [kept.add(f"t/s{number}", "n", ("k",)).ref for number in range(5)]
    kept.delete("t/s2")
    refs.remove("t/s2")
    for newest_first in (False, True):
        seen: list[Subject] = []
        more = True
        while more:
            page, more = kept.page("t", seen[-1].ref if seen else None, 3, newest_first)
            seen += page
        assert [one.ref for one in seen] == (refs[::-1] if newest_first else refs)
    with pytest.raises(NotFound, match="to list after"):
        kept.page("t", "t/s2", 3, True)


def test_deletion_leaves_no_key(kept: Subjects, settings: Settings) -> None:
    kept.add("t/s", "anna", ("k",))
    assert len(keys_of(settings)) == 2
    kept.delete("t/s")
    assert keys_of(settings) == []
    kept.delete("t/s")


def test_a_tenant_keeps_so_many(kept: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "MAX_SUBJECTS", 2)
    for name in "ab":
        kept.add(f"t/{name}", name, ("k",))
    with pytest.raises(RequestError, match="At most 2 subjects"):
        kept.add("t/c", "c", ("k",))
    kept.add("u/c", "c", ("k",))
    kept.delete("t/a")
    kept.add("t/c", "c", ("k",))
