"""Celery is a doorbell: its settings, and that the parent process stays light."""

import subprocess
import sys

from service.doorbell import ENCODE_QUEUE, ENCODE_TASK, QUEUE, TASK
from tests.service.rig import ROOT
from workers.app import LOAD_LIMIT_S, make_app
from workers.settings import Settings


def test_the_parent_imports_no_torch_and_knows_the_task() -> None:
    code = (
        "import sys, workers.app\n"
        "workers.app.app.loader.import_default_modules()\n"
        f"assert {{{TASK!r}, {ENCODE_TASK!r}}} <= set(workers.app.app.tasks)\n"
        "print({'torch', 'diffusers', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_no_pickle_enters_and_no_result_leaves(settings: Settings) -> None:
    conf = make_app(settings).conf
    assert conf.accept_content == ["json"] and conf.task_serializer == "json"
    assert conf.task_ignore_result is True and conf.result_backend is None


def test_one_job_at_a_time_and_none_hidden_behind_it(settings: Settings) -> None:
    conf = make_app(settings).conf
    assert (conf.worker_concurrency, conf.worker_prefetch_multiplier) == (1, 1)
    assert conf.task_acks_late and conf.task_reject_on_worker_lost
    assert conf.task_default_queue == QUEUE


def test_the_broker_never_redelivers_a_job_that_may_still_run(settings: Settings) -> None:
    conf = make_app(settings).conf
    assert conf.broker_transport_options["visibility_timeout"] > conf.task_time_limit
    assert conf.broker_transport_options["global_keyprefix"].startswith(settings.key_prefix)


def test_loading_may_take_longer_than_celerys_four_seconds(settings: Settings) -> None:
    assert make_app(settings).conf.worker_proc_alive_timeout == LOAD_LIMIT_S > 60


def test_a_worker_that_encodes_hears_its_own_doorbells_only(settings: Settings) -> None:
    encodes = settings.model_copy(update={"runtime": "encoders=only"})
    assert make_app(encodes).conf.task_default_queue == ENCODE_QUEUE != QUEUE
    remote = settings.model_copy(update={"runtime": "encoders=remote"})
    assert make_app(remote).conf.task_default_queue == QUEUE
