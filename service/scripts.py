"""The ledger's transitions: `service/lua/<name>.lua`, each behind `head.lua`, which says which keys
there are and what holds between them, and behind what else it uses.

A script is atomic and takes its time from Redis's own clock. Its answer is an array whose first
element is a word; the words are the vocabulary of `service.ledger`. Asked again by the same caller,
because the first answer was lost on the way, it gives that answer again and changes nothing.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

NAMES = (
    "ahead",
    "arrive",
    "beat",
    "books",
    "cancel",
    "claim",
    "commit",
    "delete",
    "due",
    "expired",
    "fail",
    "figures",
    "graves",
    "hand_back",
    "letter_put_off",
    "letter_replay",
    "letter_take",
    "ops",
    "quota_bind",
    "quota_reserve",
    "quota_settle",
    "quota_sweep",
    "read",
    "reap",
    "relist",
    "submit",
    "wanted",
    "withdraw",
    "word",
)
USED = {
    "quota_bind": ("quota",),
    "quota_reserve": ("quota",),
    "quota_settle": ("quota",),
    "quota_sweep": ("quota",),
    "read": ("record",),
    "submit": ("quota", "record"),
}


@cache
def source(name: str) -> str:
    """The whole text of a script, as Redis gets it."""
    folder = files("service") / "lua"
    parts = ("head", *USED.get(name, ()), name)
    return "".join((folder / f"{part}.lua").read_text() for part in parts)


def pairs(fields: Mapping[str, Any]) -> list[Any]:
    """Name, value, name, value: as scripts are given what goes into a hash."""
    return [part for pair in fields.items() for part in pair]
