"""`celery -A tests.workers.scripted_worker:app worker`: the product's worker, a scripted engine."""

from tests.workers.scripted import load_scripted
from workers import boot
from workers.app import app

boot.load_engine = load_scripted  # type: ignore[assignment]

__all__ = ["app"]
