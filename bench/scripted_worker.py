"""`celery -A bench.scripted_worker:app worker`: the product's worker with the scripted engine."""

from bench.scripted import load
from workers import boot
from workers.app import app

boot.load_engine = load  # type: ignore[assignment]
boot.load_judge = lambda folder: None

__all__ = ["app"]
