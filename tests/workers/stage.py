"""A worker's station in this process, with the scripted engine, for tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.ledger import Ledger
from tests.service.rig import picture, request_of
from tests.workers.scripted import ScriptedEngine
from workers.boot import Station
from workers.settings import Settings


@pytest.fixture
def place(settings: Settings, tmp_path: Path) -> Iterator[Station]:
    """A station that is ready to work."""
    found = Station(settings.model_copy(update={"model_dir": tmp_path}))
    found.engine = ScriptedEngine(folder=tmp_path)  # type: ignore[assignment]
    yield found
    found.ledger.close()


def submit(
    place: Station, prompt: str = "@anna waves", job_id: str = "v", steps: int = 6
) -> Ledger:
    """A job with one stored picture, as the gateway leaves it."""
    key = place.blobs.put(f"videos/{job_id}/in", picture(), ".png").key
    request = request_of("anna", prompt=prompt)
    request["spec"]["steps"] = steps
    place.ledger.submit(job_id, {**request, "references": [{"name": "anna", "key": key}]})
    return place.ledger
