"""`celery -A tests.workers.scripted_worker:app worker`: the product's worker, a scripted engine."""

from tests.workers.scripted import load_scripted, render_scripted
from workers import boot, media
from workers.app import app

boot.load_engine = load_scripted  # type: ignore[assignment]
media.render = render_scripted  # type: ignore[assignment]

__all__ = ["app"]
