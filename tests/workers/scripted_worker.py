"""`celery -A tests.workers.scripted_worker:app worker`: the product's worker, a scripted engine."""

from tests.workers.scripted import ScriptedJudge, load_scripted
from workers import boot
from workers.app import app

boot.load_engine = load_scripted  # type: ignore[assignment]
boot.load_judge = lambda folder: ScriptedJudge()  # type: ignore[assignment,return-value]

__all__ = ["app"]
