"""Wakes a worker: sends Celery a task by name with a job's id and nothing else.

The ledger is the record and the doorbell is only a hint. One that is lost costs seconds, because
the reaper rings again for a queued job that an idle worker has not taken
(research: kombu pops a message before it notes it down, so the broker does lose some).
"""

import logging
from collections.abc import Callable

from celery import Celery
from kombu.exceptions import OperationalError

from service.settings import Settings

TASK = "troupe.generate"
QUEUE = "troupe"
# For workers that only encode.
ENCODE_TASK = "troupe.encode"
ENCODE_QUEUE = "troupe-encode"

Ring = Callable[[str], bool]

log = logging.getLogger(__name__)


def broker_options(settings: Settings) -> dict[str, object]:
    """Transport options that gateway and worker must share, for they name the broker's keys."""
    return {"global_keyprefix": f"{settings.key_prefix}:broker:"}


class Doorbell:
    """A Celery producer that fails fast and quietly. Never asks Celery for a result."""

    def __init__(self, settings: Settings) -> None:
        timeout = settings.redis_timeout_s
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

    def ring(self, job_id: str) -> bool:
        """Send the id to the queue. False if the broker could not be reached: the job is safe."""
        return self._send(TASK, QUEUE, job_id)

    def ring_encoder(self, job_id: str) -> bool:
        """The same for a worker that encodes; who needs its encodings will ring again."""
        return self._send(ENCODE_TASK, ENCODE_QUEUE, job_id)

    def _send(self, task: str, queue: str, job_id: str) -> bool:
        try:
            self._celery.send_task(task, args=[job_id], queue=queue, retry=False)
        except (OperationalError, OSError) as error:
            log.warning("doorbell for %s not rung, it will be again: %s", job_id, error)
            return False
        return True

    def close(self) -> None:
        """Give the broker's connections back."""
        self._celery.close()
