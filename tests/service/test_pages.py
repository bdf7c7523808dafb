"""The ends of a page."""

from dataclasses import dataclass

from service.pages import edges


@dataclass
class One:
    id: str


def test_a_page_ends_where_its_first_and_last_do() -> None:
    assert edges([One("a"), One("b"), One("c")]) == {"first_id": "a", "last_id": "c"}
    assert edges([One("a")]) == {"first_id": "a", "last_id": "a"}
    assert edges([]) == {"first_id": None, "last_id": None}
