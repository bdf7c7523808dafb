"""Where workers that encode leave word for those that denoise: short-lived keys in Redis.

    <prefix>encoding:<ref>      who is at it, for a lease's time
    <prefix>encoded:<ref>       what came of it: the key of a blob, or an error
    <prefix>encoding-rung:<ref> a doorbell was rung lately

The encodings themselves are a blob among the job's own, so that they go when it is deleted. Nothing
here is a record: what is lost is made again.
"""

import json
from dataclasses import asdict, dataclass

import redis

from service.ledger import answering
from service.settings import Settings

KEPT_S = 24 * 3600


@dataclass(frozen=True)
class Offer:
    """What encoding a job came to. `key` is the blob's and `digest` that of the weights that made
    it; or, where it failed, `error` is the message, and `field` what was wrong in the request, if
    that was the reason."""

    key: str = ""
    digest: str = ""
    error: str = ""
    field: str = ""


class Exchange:
    """Every method raises LedgerDown when Redis does not answer."""

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._redis = client
        self._prefix = f"{settings.key_prefix}:"
        self._lease_ms = int(settings.lease_s * 1000)
        self._ring_ms = int(settings.ring_after_s * 1000)

    def begin(self, ref: str) -> bool:
        """Take a job's encoding in hand. False: somebody has it, or it is done."""
        with answering():
            if self._redis.exists(self._result(ref)):
                return False
            return bool(self._redis.set(self._hand(ref), "1", nx=True, px=self._lease_ms))

    def hold(self, ref: str) -> None:
        """Prolong it for another lease's time."""
        with answering():
            self._redis.set(self._hand(ref), "1", px=self._lease_ms)

    def offer(self, ref: str, offer: Offer) -> None:
        """Say what came of it, and let go."""
        with answering():
            pipe = self._redis.pipeline()
            # Who waits hears of an error at once; a job that waits in the queue must not, later.
            kept_ms = self._ring_ms if offer.error else KEPT_S * 1000
            pipe.set(self._result(ref), json.dumps(asdict(offer)), px=kept_ms)
            pipe.delete(self._hand(ref))
            pipe.execute()

    def find(self, ref: str) -> Offer | None:
        """What came of it, if anything has yet."""
        with answering():
            found = self._redis.get(self._result(ref))
        return None if found is None else Offer(**json.loads(str(found)))

    def may_ring(self, ref: str) -> bool:
        """Whether nobody is at it, nothing came of it, and no doorbell was rung for a while. Who is
        told True must ring."""
        with answering():
            if self._redis.exists(self._hand(ref), self._result(ref)):
                return False
            rung = f"{self._prefix}encoding-rung:{ref}"
            return bool(self._redis.set(rung, "1", nx=True, px=self._ring_ms))

    def forget(self, ref: str) -> None:
        """As if nothing had come of it."""
        with answering():
            self._redis.delete(self._result(ref), self._hand(ref))

    def _hand(self, ref: str) -> str:
        return f"{self._prefix}encoding:{ref}"

    def _result(self, ref: str) -> str:
        return f"{self._prefix}encoded:{ref}"
