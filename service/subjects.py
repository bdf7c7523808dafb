"""Subjects that are kept: a name and up to eight photos of one person, animal or thing.

    <prefix>subject:<tenant>/<id>  hash  name, created_ms, images (keys of blobs, as JSON), consent
    <prefix>subjects:<tenant>      zset  its subjects by the order in which they came

Photos are blobs below `home`; the first is what the generator sees, all are what it is judged by. A
job that uses a subject takes copies of its own, so a subject may go before its videos. Nothing
expires: what is kept is kept until it is deleted.
"""

import json
from dataclasses import dataclass
from typing import Any

import redis

from service.errors import NotFound, RequestError
from service.ledger import answering
from service.refs import id_of, tenant_of
from service.settings import Settings

MAX_SUBJECTS = 10_000  # of one tenant

# ref, its tenant, most, name, images, consent -> full | ok now_ms
_ADD = """
local index = KEYS[1] .. 'subjects:' .. ARGV[2]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if redis.call('ZCARD', index) >= tonumber(ARGV[3]) then return {'full', 0} end
local last = redis.call('ZRANGE', index, -1, -1, 'WITHSCORES')
redis.call('ZADD', index, (tonumber(last[2]) or 0) + 1, ARGV[1])
redis.call('HSET', KEYS[1] .. 'subject:' .. ARGV[1], 'name', ARGV[4], 'images', ARGV[5],
  'consent', ARGV[6], 'created_ms', now)
return {'ok', now}
"""


@dataclass(frozen=True)
class Subject:
    """A record. images: keys of its photos, PNG. consent: on what basis, empty if nobody said."""

    ref: str
    name: str
    created_ms: int
    images: tuple[str, ...]
    consent: str = ""

    @property
    def id(self) -> str:
        """What the client calls it."""
        return id_of(self.ref)


def home(ref: str) -> str:
    """The prefix of all its blobs."""
    return f"t/{tenant_of(ref)}/subjects/{id_of(ref)}"


class Subjects:
    """Adds, reads and deletes. Every method raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._add = client.register_script(_ADD)

    def add(self, ref: str, name: str, images: tuple[str, ...], consent: str = "") -> Subject:
        """Raises RequestError when the tenant keeps as many as it may."""
        args = (ref, tenant_of(ref), MAX_SUBJECTS, name, json.dumps(images), consent)
        with answering():
            word, now_ms = self._add(keys=[self._prefix], args=args)
        if word == "full":
            raise RequestError(
                f"At most {MAX_SUBJECTS} subjects are kept; delete some.", None, "too_many_subjects"
            )
        return Subject(ref, name, int(now_ms), images, consent)

    def read(self, ref: str) -> Subject:
        """Raises NotFound for an unknown one."""
        [found] = self._read([ref])
        if found is None:
            raise NotFound(f"There is no subject {id_of(ref)!r:.80}.")
        return found

    def _read(self, refs: list[str]) -> list[Subject | None]:
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for ref in refs:
                pipe.hgetall(f"{self._prefix}subject:{ref}")
            found = pipe.execute()
        return [_subject(ref, fields) for ref, fields in zip(refs, found, strict=True)]

    def page(
        self, tenant: str, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Subject], bool]:
        """Up to `limit` of a tenant's in order of their coming, after `after` (a ref); whether more
        follow. Raises NotFound when `after` is unknown."""
        index = f"{self._prefix}subjects:{tenant}"
        with answering():
            place = self._redis.zscore(index, after) if after else None
            if after and place is None:
                raise NotFound(f"There is no subject {id_of(after)!r:.80} to list after.")
            edge = f"({place}" if place is not None else ("+inf" if newest_first else "-inf")
            command = "ZREVRANGEBYSCORE" if newest_first else "ZRANGEBYSCORE"
            far = "-inf" if newest_first else "+inf"
            refs: list[str] = self._redis.execute_command(
                command, index, edge, far, "LIMIT", 0, limit + 1
            )
        found = self._read(refs[:limit]) if refs else []
        return [one for one in found if one is not None], len(refs) > limit

    def delete(self, ref: str) -> None:
        """Forget the record; its photos are the caller's to remove, before."""
        with answering():
            pipe = self._redis.pipeline()
            pipe.delete(f"{self._prefix}subject:{ref}")
            pipe.zrem(f"{self._prefix}subjects:{tenant_of(ref)}", ref)
            pipe.execute()


def _subject(ref: str, fields: dict[str, Any]) -> Subject | None:
    if not fields:
        return None
    images = tuple(json.loads(fields["images"]))
    return Subject(ref, fields["name"], int(fields["created_ms"]), images, fields["consent"])
