"""The ends of a page of a listing, as the Videos API tells them."""

from collections.abc import Sequence
from typing import Protocol, TypedDict


class Listed(Protocol):
    """What a page may hold."""

    id: str


class Edges(TypedDict):
    """Where a page begins, and behind what the next one does; None of an empty page."""

    first_id: str | None
    last_id: str | None


def edges(data: Sequence[Listed]) -> Edges:
    """The edges of this page."""
    first, last = (data[0].id, data[-1].id) if data else (None, None)
    return {"first_id": first, "last_id": last}
