"""A worker's station in this process, with the scripted engine, for tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.ledger import Ledger
from service.refs import LOCAL, home, ref_of
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
    place: Station,
    prompt: str = "@anna waves",
    job_id: str = "v",
    steps: int = 6,
    wish: dict[str, Any] | None = None,
    **beside: Any,
) -> Ledger:
    """A job with one stored picture, as the gateway leaves it."""
    ref = ref_of(LOCAL, job_id)
    key = place.blobs.put(f"{home(ref)}/in", picture(), ".png").key
    request = request_of("anna", prompt=prompt)
    request["spec"]["steps"] = steps
    references = [{"name": "anna", "key": key}]
    asked = {**request, "references": references, "wish": wish or {}, **beside}
    place.ledger.submit(ref, asked)
    return place.ledger
