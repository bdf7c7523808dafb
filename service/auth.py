"""API keys: who calls, and what he may do.

A key is `trp_<id>_<secret>`, 12 and 43 letters or digits. The secret has 256 random bits, so one
SHA-256 of it is all that is kept, and a slow hash would gain nothing. The id is no secret: it is
what logs and the audit chain name.

Under the prefix, and without a tenant in their names, for they are read to learn it:

    key:<id>    hash   digest, tenant, scopes, name, life_ms, created_ms, expires_ms, revoked_ms
    keys        zset   ids by time of creation, ms
    keys:used   hash   id -> time of its last use, ms, to the minute

A yes is remembered in the process for `REMEMBER_S`: so long a revoked key may still be heard.
"""

import hashlib
import hmac
import re
import secrets
import string
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import redis

from service.errors import Forbidden, NotFound, RequestError, Unauthenticated
from service.ledger import answering
from service.refs import LOCAL
from service.settings import Settings

SCOPES = ("read", "write", "admin")
REMEMBER_S = 5.0
REMEMBER_MOST = 10_000
USED_EVERY_MS = 60_000
ALPHABET = string.digits + string.ascii_letters
ID_CHARS, SECRET_CHARS = 12, 43  # 62^43 > 2^256

_TOKEN = re.compile(rf"trp_([0-9A-Za-z]{{{ID_CHARS}}})_([0-9A-Za-z]{{{SECRET_CHARS}}})")
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")

# id, then field, value pairs, then the id that it replaces or '', and that one's new end in ms
# -> ok | gone | ended
_CREATE = """
local p, id, old = KEYS[1], ARGV[1], ARGV[#ARGV - 1]
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ends = now + tonumber(ARGV[#ARGV])
if redis.call('EXISTS', p .. 'key:' .. id) == 1 then return 'ok' end
if old ~= '' then
  local before = redis.call('HMGET', p .. 'key:' .. old, 'digest', 'expires_ms', 'revoked_ms')
  if not before[1] then return 'gone' end
  local expires = tonumber(before[2])
  if before[3] ~= '0' or (expires > 0 and expires <= now) then return 'ended' end
  if expires > 0 then ends = math.min(ends, expires) end
  redis.call('HSET', p .. 'key:' .. old, 'expires_ms', ends)
end
for i = 2, #ARGV - 2, 2 do redis.call('HSET', p .. 'key:' .. id, ARGV[i], ARGV[i + 1]) end
local life = tonumber(redis.call('HGET', p .. 'key:' .. id, 'life_ms'))
redis.call('HSET', p .. 'key:' .. id, 'created_ms', now, 'revoked_ms', 0,
  'expires_ms', life > 0 and now + life or 0)
-- Two of one millisecond keep their order.
local top = redis.call('ZRANGE', p .. 'keys', -1, -1, 'WITHSCORES')[2]
redis.call('ZADD', p .. 'keys', math.max(now, (tonumber(top) or 0) + 1), id)
return 'ok'
"""

# id -> gone | ok. The first revocation is the one that counts.
_REVOKE = """
local key = KEYS[1] .. 'key:' .. ARGV[1]
if redis.call('EXISTS', key) == 0 then return 'gone' end
local t = redis.call('TIME')
if redis.call('HGET', key, 'revoked_ms') == '0' then
  redis.call('HSET', key, 'revoked_ms', t[1] * 1000 + math.floor(t[2] / 1000))
end
return 'ok'
"""


@dataclass(frozen=True)
class Caller:
    """Who sent a request: the tenant it works for, the key's id for the books, and its scopes."""

    tenant: str
    key_id: str
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raises Forbidden unless the key has the scope."""
        if scope not in self.scopes:
            had = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(f"This needs a key with the scope {scope!r}; yours has: {had}.")


EVERYBODY = Caller(LOCAL, "", frozenset(SCOPES))  # where no keys are required


@dataclass(frozen=True)
class Key:
    """A key as kept: everything but the secret. Times in ms since 1970; 0: never.

    life_ms: how long it was made for; a rotation may end it earlier.
    """

    id: str
    tenant: str
    name: str
    scopes: tuple[str, ...]
    life_ms: int
    created_ms: int
    expires_ms: int
    revoked_ms: int
    used_ms: int

    def state(self, now_ms: int) -> str:
        """live, expired or revoked."""
        if self.revoked_ms:
            return "revoked"
        return "expired" if 0 < self.expires_ms <= now_ms else "live"


class Keys:
    """Makes, ends and checks keys. Raises LedgerDown when Redis does not answer.

    required: without, everybody is the tenant `local` and may do everything.
    """

    def __init__(self, client: redis.Redis, settings: Settings, required: bool) -> None:
        self.required = required
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._create = client.register_script(_CREATE)
        self._revoke = client.register_script(_REVOKE)
        self._known: dict[bytes, tuple[float, Caller]] = {}
        self._lock = threading.Lock()

    # what the gateway asks at every request

    def recall(self, header: str | None) -> Caller | None:
        """The caller of a key that was found good within the last seconds. Asks nobody."""
        if not self.required:
            return EVERYBODY
        found = self._known.get(_fingerprint(header or ""))
        return found[1] if found and time.monotonic() < found[0] else None

    def authenticate(self, header: str | None) -> Caller:
        """The caller of an Authorization header.

        Raises:
            Unauthenticated: no key, or one that is unknown, has expired or was revoked. Only who
                holds the true secret is told which.
        """
        if (caller := self.recall(header)) is not None:
            return caller
        if header is None:
            raise Unauthenticated("Authorization: send your API key, as 'Bearer trp_…'.")
        scheme, _, token = header.partition(" ")
        match = _TOKEN.fullmatch(token.strip())
        if scheme.lower() != "bearer" or match is None:
            raise Unauthenticated("Authorization: must be 'Bearer trp_<id>_<secret>'.")
        since = time.monotonic()
        key, digest, now_ms = self._read(match[1])
        if not hmac.compare_digest(digest, _digest(match[2])) or key is None:
            raise Unauthenticated("The API key is not known here.")
        if (state := key.state(now_ms)) != "live":
            raise Unauthenticated(f"The API key trp_{key.id} is {state}.")
        self._mark_used(key, now_ms)
        caller = Caller(key.tenant, key.id, frozenset(key.scopes))
        left_s = (key.expires_ms - now_ms) / 1000 if key.expires_ms else REMEMBER_S
        self._remember(_fingerprint(header), since + min(REMEMBER_S, left_s), caller)
        return caller

    def _read(self, key_id: str) -> tuple[Key | None, str, int]:
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            pipe.time()
            pipe.hgetall(f"{self._prefix}key:{key_id}")
            pipe.hget(f"{self._prefix}keys:used", key_id)
            (seconds, micros), fields, used = pipe.execute()
        key = _key(key_id, fields, used) if fields else None
        return key, fields.get("digest", ""), seconds * 1000 + micros // 1000

    def _mark_used(self, key: Key, now_ms: int) -> None:
        if now_ms - key.used_ms >= USED_EVERY_MS:
            with answering():
                self._redis.hset(f"{self._prefix}keys:used", key.id, str(now_ms))

    def _remember(self, fingerprint: bytes, until: float, caller: Caller) -> None:
        with self._lock:
            self._known.pop(fingerprint, None)
            if len(self._known) >= REMEMBER_MOST:
                del self._known[next(iter(self._known))]  # the oldest, which ends first
            self._known[fingerprint] = until, caller

    # what an operator does

    def create(
        self,
        tenant: str,
        name: str = "",
        scopes: Iterable[str] = ("read", "write"),
        life_s: float | None = None,
    ) -> str:
        """A new key; the only time that it is seen whole. life_s: seconds until it expires.

        Raises:
            RequestError: a tenant, scope or life that cannot be.
        """
        check_tenant(tenant)
        given = tuple(scopes)
        if not given or not set(given) <= set(SCOPES):
            raise RequestError(f"scopes: one or more of {', '.join(SCOPES)}.", "scopes")
        if len(name) > 100 or not name.isprintable():
            raise RequestError("name: at most 100 printable characters.", "name")
        if life_s is not None and life_s <= 0:
            raise RequestError("life: must be more than nothing.", "life")
        life_ms = int((life_s or 0) * 1000)
        fields = {"tenant": tenant, "scopes": " ".join(sorted(set(given))), "name": name}
        return self._make({**fields, "life_ms": str(life_ms)}, "", 0)

    def rotate(self, key_id: str, overlap_s: float) -> str:
        """A new key like an old one, which ends after `overlap_s` seconds, if not earlier.

        The new one lives as long as the old one was made for, from now on.

        Raises:
            NotFound: no such key.
            RequestError: it has ended, or the overlap is negative.
        """
        if overlap_s < 0:
            raise RequestError("overlap: must not be negative.", "overlap")
        old = self.read(key_id)
        fields = {"tenant": old.tenant, "scopes": " ".join(old.scopes), "name": old.name}
        return self._make({**fields, "life_ms": str(old.life_ms)}, key_id, int(overlap_s * 1000))

    def _make(self, fields: Mapping[str, str], old: str, overlap_ms: int) -> str:
        key_id, secret = _random(ID_CHARS), _random(SECRET_CHARS)
        pairs = [part for pair in fields.items() for part in pair]
        args: list[str | int] = [key_id, "digest", _digest(secret), *pairs, old, overlap_ms]
        with answering():
            word = self._create(keys=[self._prefix], args=args)
        if word == "gone":
            raise _no_key(old)
        if word == "ended":
            raise RequestError(f"The key {old} has ended; create a new one.", "key")
        return f"trp_{key_id}_{secret}"

    def revoke(self, key_id: str) -> None:
        """End a key now; gateways hear of it within REMEMBER_S. Raises NotFound."""
        with answering():
            word = self._revoke(keys=[self._prefix], args=[key_id])
        if word == "gone":
            raise _no_key(key_id)

    def read(self, key_id: str) -> Key:
        """Raises NotFound."""
        key, _, _ = self._read(key_id)
        if key is None:
            raise _no_key(key_id)
        return key

    def listing(self, tenant: str | None = None) -> list[Key]:
        """All keys, or a tenant's, the oldest first."""
        with answering():
            ids = self._redis.zrange(f"{self._prefix}keys", 0, -1)
        keys = [key for name in ids if (key := self._read(str(name))[0]) is not None]
        return [key for key in keys if tenant in {None, key.tenant}]


def check_tenant(tenant: str) -> None:
    """Raises RequestError unless it may be a tenant's name."""
    if not _TENANT.fullmatch(tenant):
        wanted = "1 to 32 of a-z, 0-9 and -, not beginning with -"
        raise RequestError(f"tenant: {tenant!r:.60} is not a name; {wanted}.", "tenant")


def _key(key_id: str, fields: Mapping[str, Any], used: str | None) -> Key:
    return Key(
        id=key_id,
        tenant=fields["tenant"],
        name=fields["name"],
        scopes=tuple(fields["scopes"].split()),
        life_ms=int(fields["life_ms"]),
        created_ms=int(fields["created_ms"]),
        expires_ms=int(fields["expires_ms"]),
        revoked_ms=int(fields["revoked_ms"]),
        used_ms=int(used or 0),
    )


def _random(chars: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(chars))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _fingerprint(header: str) -> bytes:
    return hashlib.sha256(header.encode()).digest()


def _no_key(key_id: str) -> NotFound:
    return NotFound(f"There is no key {key_id!r:.40}.")
