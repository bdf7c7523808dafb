"""Wakes a worker: sends Celery a task by name and nothing else; to encoders, with a job's ref.

The ledger is the record and the doorbell is only a hint. One that is lost costs seconds, because
the reaper rings again for a queued job that an idle worker has not taken
(research: kombu pops a message before it notes it down, so the broker does lose some).

A doorbell costs more than all else that is done for a job that is submitted, and does not say which
job is made. So where many wait unanswered already no more are rung: every worker is busy then, and
rings itself when it has ended a job and others wait.
"""

import base64
import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from service.settings import Settings

TASK = "troupe.generate"
QUEUE = "troupe"
# For workers that only encode.
ENCODE_TASK = "troupe.encode"
ENCODE_QUEUE = "troupe-encode"

ENOUGH = 64  # unanswered doorbells
PAUSE_S = 0.02  # between two looks at how many there are

Ring = Callable[[str], bool]

log = logging.getLogger(__name__)


def broker_options(settings: Settings) -> dict[str, object]:
    """Transport options that gateway and worker must share, for they name the broker's keys."""
    return {"global_keyprefix": f"{settings.key_prefix}:broker:"}


class Doorbell:
    """A Celery producer that fails fast and quietly. Never asks Celery for a result."""

    def __init__(self, settings: Settings) -> None:
        timeout = settings.redis_timeout_s
        self._encode_key = f"{broker_options(settings)['global_keyprefix']}{ENCODE_QUEUE}"
        self._broker = redis.Redis.from_url(  # connects when it is first asked for something
            settings.broker_url or settings.redis_url, socket_timeout=timeout, decode_responses=True
        )
        self._celery = Celery("troupe", broker=settings.celery_broker, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            task_publish_retry=False,
            broker_connection_timeout=timeout,
            broker_transport_options={
                **broker_options(settings),
                "socket_timeout": timeout,
                "socket_connect_timeout": timeout,
                "retry_on_timeout": False,
                "max_retries": 1,
                "interval_start": 0,
                "interval_step": 0,
            },
        )
        self._soon: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._ringer: threading.Thread | None = None
        self._starting = threading.Lock()

    def ring(self, ref: str) -> bool:
        """Wake a worker. False if the broker could not be reached: the job is safe."""
        # Without the id: it says nothing that a worker asks for, and would outlive a deletion.
        return self._send(TASK, QUEUE, "", ref)

    def ring_some(self, refs: Sequence[str]) -> None:
        """The same for each, but for no more than there is use for."""
        try:
            room = ENOUGH - self._unanswered()
        except (OperationalError, OSError) as error:
            log.warning("%d doorbells not rung, they will be again: %s", len(refs), error)
            return
        for ref in refs[: max(room, 0)]:
            self.ring(ref)

    def ring_soon(self, ref: str) -> None:
        """`ring_some` for callers that cannot wait: a thread does it for all that came since."""
        with self._starting:
            if self._ringer is None:
                self._ringer = threading.Thread(target=self._ring_on, name="doorbell", daemon=True)
                self._ringer.start()
        self._soon.put(ref)

    def _ring_on(self) -> None:
        going = True
        while going:
            refs = [self._soon.get()]
            while not self._soon.empty():
                refs.append(self._soon.get())
            going = None not in refs
            self.ring_some([ref for ref in refs if ref is not None])
            time.sleep(PAUSE_S if going else 0)

    def _unanswered(self) -> int:
        with self._celery.pool.acquire(block=True) as connection:
            # Not passive: kombu then looks for the list without our prefix, and finds none.
            return int(connection.default_channel.queue_declare(QUEUE).message_count)

    def ring_encoder(self, ref: str) -> bool:
        """The same for a worker that encodes; who needs its encodings will ring again."""
        return self._send(ENCODE_TASK, ENCODE_QUEUE, ref, ref)

    def forget(self, ref: str) -> None:
        """Take a deleted job's id out of the encoders' queue. Without a broker, an encoder will."""
        try:
            for message in map(str, self._broker.lrange(self._encode_key, 0, -1)):
                if _said(message) == [ref]:
                    self._broker.lrem(self._encode_key, 1, message)
        except redis.RedisError as error:
            log.warning("%s left in the encoders' queue: %s", ref, error)

    def _send(self, task: str, queue: str, said: str, ref: str) -> bool:
        try:
            self._celery.send_task(task, args=[said], queue=queue, retry=False)
        except (OperationalError, OSError) as error:
            log.warning("doorbell for %s not rung, it will be again: %s", ref, error)
            return False
        return True

    def close(self) -> None:
        """Ring for what waits, and give the broker's connections back."""
        if self._ringer is not None:
            self._soon.put(None)
            self._ringer.join(10)
        self._celery.close()
        self._broker.close()


def _said(message: str) -> object:
    """The task's arguments, of kombu's envelope (Celery's message protocol 2)."""
    return json.loads(base64.b64decode(json.loads(message)["body"]))[0]
