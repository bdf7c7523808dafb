"""Who is told of a job's end: letters in an outbox, how they are signed, and those given up.

A letter is `<ref>|<kind>` in the outbox, where the ledger's Lua puts it together with the end
itself; the job's record has the address (`webhook`) and what came of it (`webhook_tries`,
`webhook_error`). Who takes a letter moves it on by LEASE_S, so that one whose courier died is due
again by itself: it is delivered at least once, and by its id, the same at every try, its receiver
knows it again. Signed as Standard Webhooks 1.0.0 says, which the openai SDK verifies.
"""

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from service import scripts, views
from service.errors import AddressError, RequestError
from service.jobs import Job
from service.ledger import answering
from service.outward import Outward
from service.refs import ref_of, tenant_of
from service.settings import Settings

LEASE_S = 60.0  # longer than a POST and the look-up of its name may take together
OVERLAP_S = 24 * 3600
@dataclass(frozen=True)
class Letter:
    """That a job has ended, `kind` says how. `tries` counts from 1."""

    ref: str
    kind: str
    tries: int = 0

    @property
    def name(self) -> str:
        """As Redis holds it."""
        return f"{self.ref}|{self.kind}"

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return tenant_of(self.ref)

    @property
    def id(self) -> str:
        """The same at every try, also after a replay."""
        return f"evt_{hashlib.sha256(self.name.encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Dead:
    """A letter that was given up at `at_ms` (since 1970, by Redis's clock), and why."""

    letter: Letter
    error: str
    at_ms: int


def check_webhook_url(url: str, outward: Outward) -> str:
    """The address itself, or empty for none. Says what can be said before the name is looked up;
    at each delivery it is looked at again.

    Raises:
        RequestError: naming the field.
    """
    try:
        return url and str(outward.check(url))
    except AddressError as error:
        raise RequestError(f"webhook_url: the address {error}.", "webhook_url") from error


def body_of(letter: Letter, job: Job) -> bytes:
    """What is posted: OpenAI's webhook event, with the whole Video object as its data."""
    event = {
        "id": letter.id,
        "object": "event",
        "type": "video.completed" if letter.kind == "completed" else "video.failed",
        "created_at": job.number("finished_ms") // 1000,
        "data": views.video(job).model_dump(mode="json"),
    }
    return json.dumps(event).encode()


def headers_of(letter: Letter, body: bytes, keys: Sequence[str], now_s: int) -> dict[str, str]:
    """Standard Webhooks: one signature for each secret that is valid now."""
    signed = f"{letter.id}.{now_s}.".encode() + body
    return {
        "content-type": "application/json",
        "webhook-id": letter.id,
        "webhook-timestamp": str(now_s),
        "webhook-signature": " ".join(f"v1,{_signature(key, signed)}" for key in keys),
    }


def _signature(key: str, signed: bytes) -> str:
    raw = base64.b64decode(key.removeprefix("whsec_"))
    return base64.b64encode(hmac.digest(raw, signed, "sha256")).decode()


class Outbox:
    """Letters to be delivered. Every method raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._scripts = {
            name: client.register_script(scripts.source(f"letter_{name}"))
            for name in ("take", "put_off", "replay")
        }

    def _run(self, name: str, *args: str | int) -> list[str]:
        with answering():
            answer: list[str] = self._scripts[name](keys=[self._prefix], args=args)
        return answer

    def take(self, not_of: Sequence[str] = ()) -> Letter | None:
        """The letter longest due, of any tenant but these, for a lease's time."""
        found = self._run("take", int(LEASE_S * 1000), *not_of)
        return _letter(found[0], int(found[1])) if found else None

    def done(self, letter: Letter) -> None:
        """It was delivered, or there is nothing to deliver."""
        with answering():
            pipe = self._redis.pipeline()
            pipe.zrem(f"{self._prefix}outbox", letter.name)
            # Where a slow courier delivers what another one gave up meanwhile.
            pipe.zrem(f"{self._prefix}dead:{letter.tenant}", letter.name)
            pipe.execute()

    def put_off(self, letter: Letter, error: str, wait_s: float) -> None:
        """Try again later."""
        self._run("put_off", letter.name, error, int(wait_s * 1000))

    def give_up(self, letter: Letter, error: str) -> None:
        """Lay it aside, for `dead` and `replay`."""
        self._run("put_off", letter.name, error, -1)

    def dead(self, tenant: str) -> list[Dead]:
        """The letters of a tenant that were given up, the oldest first."""
        with answering():
            found: Any = self._redis.zrange(f"{self._prefix}dead:{tenant}", 0, -1, withscores=True)
            return [self._obituary(str(name), int(at_ms)) for name, at_ms in found]

    def replay(self, tenant: str, *video_ids: str) -> list[Letter]:
        """Send dead letters of these videos again, or all; they have all their tries again."""
        refs = [ref_of(tenant, video_id) for video_id in video_ids]
        return [_letter(name, 0) for name in self._run("replay", tenant, *refs)]

    def _obituary(self, name: str, at_ms: int) -> Dead:
        letter = _letter(name, 0)
        record = f"{self._prefix}job:{letter.ref}"
        tries, error = self._redis.hmget(record, "webhook_tries", "webhook_error")
        return Dead(_letter(name, int(tries or 0)), str(error or ""), at_ms)


class Secrets:
    """What a tenant's webhooks are signed with, `whsec_` and base64 of 32 random bytes. They are
    needed in the clear to sign with. Every method raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:webhook-secret:"

    def valid(self, tenant: str) -> list[str]:
        """The secret, made if there was none; and the one before, while a rotation lasts."""
        key = self._prefix + tenant
        with answering():
            self._redis.hsetnx(key, "secret", _new())
            found: Any = self._redis.hgetall(key)
            seconds, _ = self._redis.time()  # type: ignore[misc]
        old = int(found.get("old_until_ms", 0)) > seconds * 1000
        return [found["secret"], found["old"]] if old else [found["secret"]]

    def rotate(self, tenant: str) -> str:
        """A new secret; the old one signs too for another OVERLAP_S."""
        old, fresh = self.valid(tenant)[0], _new()
        with answering():
            seconds, _ = self._redis.time()  # type: ignore[misc]
            until = int(seconds + OVERLAP_S) * 1000
            fields = {"secret": fresh, "old": old, "old_until_ms": until}
            self._redis.hset(self._prefix + tenant, mapping=fields)  # type: ignore[arg-type]
        return fresh


def _new() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _letter(name: str, tries: int) -> Letter:
    ref, _, kind = name.rpartition("|")
    return Letter(ref, kind, tries)
