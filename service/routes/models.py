"""GET /v1/models: what can be asked of this server."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from service.deps import TheHouse

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def models(house: TheHouse) -> dict[str, Any]:
    """The preset with its limits and defaults, and the digests that live workers have loaded."""
    preset = house.preset
    digests = {worker.digest for worker in house.roster.present() if worker.healthy}
    model = {
        "id": preset.name,
        "object": "model",
        "created": 0,
        "owned_by": "troupe",
        "limits": asdict(preset.limits),
        "defaults": asdict(preset.defaults),
        "digests": sorted(digests),
    }
    return {"object": "list", "data": [model]}
