"""GET /v1/models: what can be asked of this server."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from service.deps import Reader, TheHouse
from service.roster import models_of, tiers_of

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
def models(caller: Reader, house: TheHouse) -> dict[str, Any]:
    """The preset with its limits and defaults, and the digests that live workers have loaded; then
    the adapters that they serve, each a model of the same limits by its own name.

    Among the limits are only those tiers that a live worker serves, once one has said which.
    """
    preset, workers = house.preset, house.roster.present()
    digests = {worker.digest for worker in workers if worker.healthy and worker.digest}
    tiers = tiers_of(workers, preset.limits.tiers)
    model = {
        "id": preset.name,
        "object": "model",
        "created": 0,
        "owned_by": "troupe",
        "limits": asdict(preset.limits) | {"tiers": tiers},
        "defaults": asdict(preset.defaults),
        "digests": sorted(digests),
    }
    adapters = [
        model | {"id": name, "parent": preset.name, "digests": sorted(found)}
        for name, found in sorted(models_of(workers).items())
    ]
    return {"object": "list", "data": [model, *adapters]}
