"""What was done to whom, as a chain that shows when it was altered: one for each service.

Each entry holds the hash of the one before, so a changed, missing, added or moved entry breaks the
chain from there on. What it cannot show by itself is that its end was cut off, or that all of it
was written anew, by somebody who may write to Redis: for that, keep what `troupe audit head` says
somewhere else, and give it to `troupe audit verify --head` later.

Entries never hold a prompt, a picture or the name of a job: `about` is the SHA-256 of the name, so
whoever knows it finds its entries, and a deletion leaves nothing else. Under the prefix:

    audit        list   entries as JSON, the oldest first
    audit:head   hash   seq and hash of the last
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace

import redis

from service.auth import Caller
from service.errors import LedgerDown, RequestError
from service.ledger import answering
from service.settings import Settings

BASES = ("self", "consent", "licence", "fictional", "other")
FIRST = "0" * 64  # before the first entry
MAX_TEXT = 500
TRIES = 200
PAGE = 1000

_HEAD = """
local t = redis.call('TIME')
local head = redis.call('HMGET', KEYS[1] .. 'audit:head', 'seq', 'hash')
return {t[1] * 1000 + math.floor(t[2] / 1000), head[1] or '0', head[2] or ''}
"""

# the hash that the head must have, the new one, the entry -> ok | moved
_APPEND = """
local head = KEYS[1] .. 'audit:head'
local last = redis.call('HGET', head, 'hash') or ''
if last == ARGV[2] then return 'ok' end  -- asked again, because the first answer got lost
if last ~= ARGV[1] then return 'moved' end
redis.call('RPUSH', KEYS[1] .. 'audit', ARGV[3])
redis.call('HINCRBY', head, 'seq', 1)
redis.call('HSET', head, 'hash', ARGV[2])
return 'ok'
"""

Detail = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Entry:
    """One thing that was done. at_ms since 1970 by Redis's clock; `actor` is the id of a key, or
    empty; `about` a digest of what it was done to; `prev` the hash of the entry before."""

    seq: int
    at_ms: int
    tenant: str
    actor: str
    action: str
    about: str
    detail: Detail
    prev: str
    hash: str

    def digest(self) -> str:
        """SHA-256 over every field but `hash`, in hex."""
        values = {name: value for name, value in asdict(self).items() if name != "hash"}
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> "Entry":
        """Raises ValueError when it does not hold exactly the fields of an entry."""
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != {field.name for field in fields(cls)}:
            raise ValueError("other fields than those of an entry")
        return cls(**values)


@dataclass(frozen=True)
class Verdict:
    """What a look at the whole chain found. `fault` says what is wrong; empty: nothing."""

    entries: int
    head: str
    fault: str = ""


def about(name: str) -> str:
    """How the chain speaks of a job, a subject or a key."""
    return hashlib.sha256(name.encode()).hexdigest()


class Audit:
    """Appends, reads and verifies. Raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._read_head = client.register_script(_HEAD)
        self._append = client.register_script(_APPEND)

    def append(
        self, tenant: str, actor: str, action: str, name: str, detail: Detail | None = None
    ) -> Entry:
        """Write an entry about `name`. Redis cannot hash it, so it is made here and taken only if
        nobody was faster; else made again.

        Raises:
            LedgerDown: too many were faster.
        """
        for attempt in range(TRIES):
            with answering():
                at_ms, seq, prev = self._read_head(keys=[self._prefix])
            where = (about(name), detail or {}, prev or FIRST, "")
            bare = Entry(int(seq) + 1, at_ms, tenant, actor, action, *where)
            entry = replace(bare, hash=bare.digest())
            with answering():
                args = (prev, entry.hash, json.dumps(asdict(entry)))
                word = self._append(keys=[self._prefix], args=args)
            if word == "ok":
                return entry
            time.sleep(0.0005 * min(attempt, 20))
        raise LedgerDown("The audit chain is written to by too many at once; try again.")

    def attest(self, caller: Caller, subject: str, who: str, basis: str, text: str = "") -> Entry:
        """Why a person's pictures may be used: `who` says so, on what basis, in his words.

        Raises:
            RequestError: a basis that is none of BASES, or texts that are empty or too long.
        """
        if basis not in BASES:
            raise RequestError(f"consent.basis: must be one of {', '.join(BASES)}.", "consent")
        if not 1 <= len(who) <= 100 or len(text) > MAX_TEXT:
            message = f"consent: who has 1 to 100 characters, text at most {MAX_TEXT}."
            raise RequestError(message, "consent")
        detail: Detail = {"who": who, "basis": basis, "text": text}
        return self.append(caller.tenant, caller.key_id, "subject.consent", subject, detail)

    def entries(self, tenant: str | None = None, name: str | None = None) -> Iterator[Entry]:
        """Those that can be read, oldest first; of one tenant, or about one name."""
        wanted = None if name is None else about(name)
        for text in self._texts():
            try:
                entry = Entry.from_json(text)
            except (ValueError, RecursionError):
                continue  # `verify` tells of it
            if tenant in {None, entry.tenant} and wanted in {None, entry.about}:
                yield entry

    def head(self) -> str:
        """The last entry as `seq:hash`, to be kept elsewhere."""
        with answering():
            _, seq, digest = self._read_head(keys=[self._prefix])
        return f"{seq}:{digest or FIRST}"

    def verify(self, kept: str | None = None) -> Verdict:
        """Check every entry, the head, and an earlier head that was kept elsewhere.

        Raises:
            RequestError: `kept` is not of the form seq:hash.
        """
        found = self.head()
        return check(self._texts(), found, kept)

    def _texts(self) -> Iterator[str]:
        start = 0
        while True:
            with answering():
                page = self._redis.lrange(f"{self._prefix}audit", start, start + PAGE - 1)
            yield from (str(text) for text in page)
            if len(page) < PAGE:
                return
            start += PAGE


def check(texts: Iterable[str], head: str, kept: str | None = None) -> Verdict:
    """The chain from its texts. Entries after `head` were written while it was being read.

    Raises:
        RequestError: `kept` is not of the form seq:hash.
    """
    last_seq, last_hash = _parse(head)
    kept_seq, kept_hash = _parse(kept) if kept else (0, FIRST)
    seq, prev = 0, FIRST
    for text in texts:
        if (fault := _fault(text, seq + 1, prev)) is not None:
            return Verdict(seq, f"{seq}:{prev}", fault)
        seq, prev = seq + 1, str(json.loads(text)["hash"])
        if seq == kept_seq and prev != kept_hash:
            return Verdict(seq, f"{seq}:{prev}", f"entry {seq} is not the one that was kept")
        if seq == last_seq and prev != last_hash:
            return Verdict(seq, f"{seq}:{prev}", f"entry {seq} is not the one that the head names")
    wanted = max(last_seq, kept_seq)
    fault = f"entries after {seq} are missing, there were {wanted}" if seq < wanted else ""
    return Verdict(seq, f"{seq}:{prev}", fault)


def _fault(text: str, seq: int, prev: str) -> str | None:
    """What is wrong with the entry that should have this number and follow this hash."""
    try:
        entry = Entry.from_json(text)
    except (ValueError, RecursionError) as error:
        return f"entry {seq} cannot be read: {error}"
    if entry.seq != seq:
        return f"entry {seq} is missing: {entry.seq} stands in its place"
    if entry.prev != prev:
        return f"entry {seq} does not follow the one before it"
    if entry.hash != entry.digest():
        return f"entry {seq} was altered"
    return None


def _parse(head: str) -> tuple[int, str]:
    seq, _, digest = head.partition(":")
    if not seq.isdecimal() or len(digest) != len(FIRST):
        message = f"head: {head!r:.80} is not SEQ:HASH as `troupe audit head` says it."
        raise RequestError(message, "head")
    return int(seq), digest
