"""Channels: names that lead to a model and are moved by compare-and-swap, with their history.

    channels/stable    {"format": 1, "lines": [{"id": ..., "digest": ..., "why": "promote",
                        "note": ..., "share": 1.0, "at": "2026-11-21T16:00:00Z"}, ...]}

The last line counts. A move is a line more, written only over what was read: of two publishers at
once the slower one reads again, so no line is lost. After each write the channel is read back,
because an answer may be lost on the way, and because there are stores that ignore conditions;
those are found out before the first move (`engine.stores.probe`) and refused.
"""

from __future__ import annotations

import json
import random
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from engine.errors import RegistryError
from engine.stores import Store, probe

FORMAT = 1
FOLDER = "channels"
STABLE, CANARY = "stable", "canary"
NAME = re.compile("[a-z][a-z0-9-]{0,31}")
MAX_BYTES = 4_000_000
MAX_LINES = 5_000
MAX_NOTE = 300  # characters
TRIES = 60
PAUSE_S = 0.2  # the longest between two tries
WHYS = ("promote", "rollback", "close")


@dataclass(frozen=True)
class Line:
    """One move. digest: of the model, empty: to none. why: of `WHYS`. share: of the jobs that the
    model gets, 0 to 1. at: UTC."""

    id: str
    digest: str
    why: str
    note: str = ""
    share: float = 1.0
    at: str = ""


@dataclass(frozen=True)
class Channel:
    """A channel as it was read; without lines it has never been moved."""

    name: str
    lines: tuple[Line, ...] = ()

    @property
    def digest(self) -> str:
        """Of the model that it leads to, or empty."""
        return self.lines[-1].digest if self.lines else ""

    @property
    def share(self) -> float:
        """Of the jobs, 0 to 1."""
        return self.lines[-1].share if self.lines else 0.0

    def before(self) -> str:
        """The digest that a rollback goes to, empty: none. What was rolled back is passed over."""
        led: list[str] = []
        for line in self.lines:
            if line.why == "rollback" and led:
                led.pop()
            if not led or led[-1] != line.digest:
                led.append(line.digest)
        return led[-2] if len(led) > 1 else ""

    def to_bytes(self) -> bytes:
        """The file; of a long history the last part, so that it can be read again."""
        kept = [asdict(line) for line in self.lines[-MAX_LINES:]]
        content = json.dumps({"format": FORMAT, "lines": kept}, indent=1).encode()
        if len(content) <= MAX_BYTES:
            return content
        return Channel(self.name, self.lines[-len(kept) // 2 :]).to_bytes()

    @classmethod
    def from_bytes(cls, name: str, content: bytes) -> Channel:
        """Raises RegistryError when the content is no channel."""
        try:
            values = json.loads(content)
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}, not {FORMAT}")
            return cls(name, tuple(_line(one) for one in values["lines"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RegistryError(f"the channel {name} cannot be read: {error!s:.200}") from error


def _line(values: dict[str, object]) -> Line:
    kinds = {field.name: float if field.name == "share" else str for field in fields(Line)}
    if {name: type(value) for name, value in values.items()} != kinds:
        raise ValueError("a line of another kind")
    return Line(**values)  # type: ignore[arg-type]


class Channels:
    """The channels of a store. Every method raises RegistryError."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._probed = False

    def names(self) -> list[str]:
        """Of those that have ever been moved."""
        found = (name.removeprefix(f"{FOLDER}/") for name in self._store.names(f"{FOLDER}/"))
        return sorted(name for name in found if NAME.fullmatch(name))

    def read(self, name: str) -> Channel:
        """The channel as it is now."""
        return self._read(name)[0]

    def move(
        self, name: str, digest: str, note: str = "", share: float = 1.0, expect: str | None = None
    ) -> Channel:
        """Lead a channel to a model; the channel as it is then.

        Args:
            digest: the model's, or empty: to none.
            expect: the digest that it must lead to now; None: any.
        """
        if not 0 < share <= 1:
            raise RegistryError(f"the share of jobs must be above 0 and at most 1, not {share:g}")

        def next_line(now: Channel) -> Line:
            _check_expected(now, expect)
            return _new(digest, "promote" if digest else "close", note, share)

        return self._add(name, next_line)

    def roll_back(self, name: str, note: str = "", expect: str | None = None) -> Channel:
        """Lead a channel to the model that it led to before. Only from the model that it leads to
        when this is called, or `expect`: a later publication is not rolled back with it."""
        expect = self.read(name).digest if expect is None else expect

        def next_line(now: Channel) -> Line:
            _check_expected(now, expect)
            if not now.before():
                raise RegistryError(f"the channel {name} has led to no other model before")
            return _new(now.before(), "rollback", note, 1.0)

        return self._add(name, next_line)

    def _read(self, name: str) -> tuple[Channel, str | None]:
        if not NAME.fullmatch(name):
            raise RegistryError(
                f"{name!r} is no channel's name: a letter, then a-z, 0-9 and -, at most 32; and no"
                " digest, of which eight digits are the least"
            )
        found = self._store.read(f"{FOLDER}/{name}", MAX_BYTES)
        if found is None:
            return Channel(name), None
        return Channel.from_bytes(name, found[0]), found[1]

    def _add(self, name: str, next_line: Callable[[Channel], Line]) -> Channel:
        if not self._probed:
            probe(self._store)
            self._probed = True
        why = "others move it all the time"
        for _ in range(TRIES):
            now, mark = self._read(name)
            line = next_line(now)
            content = Channel(name, (*now.lines, line)).to_bytes()
            try:
                stored = self._store.swap(f"{FOLDER}/{name}", content, mark)
            except RegistryError as error:  # it may have been stored all the same
                stored, why = False, str(error)
            then, _ = self._read(name)
            if line in then.lines:
                return then
            if stored:
                raise RegistryError(f"{self._store.url} heeds no conditions: {name} was lost")
            time.sleep(random.uniform(0, PAUSE_S))
        raise RegistryError(f"the channel {name} was not moved: {why}")


def _check_expected(now: Channel, expect: str | None) -> None:
    if expect is not None and now.digest != expect:
        raise RegistryError(
            f"the channel {now.name} leads to {now.digest[:12] or 'no model'} by now,"
            f" not to {expect[:12] or 'none'}: look again"
        )


def _new(digest: str, why: str, note: str, share: float) -> Line:
    if len(note) > MAX_NOTE:
        raise RegistryError(f"a note may have {MAX_NOTE} characters, not {len(note)}")
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Line(uuid.uuid4().hex, digest, why, note, float(share), at)
