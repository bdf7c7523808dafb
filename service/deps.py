"""What routes depend on, as named types. Each is one object per process, made by the lifespan."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from engine.presets import Preset
from service.blobs import Blobs
from service.doorbell import Doorbell
from service.intake import Intake
from service.ledger import Ledger
from service.roster import Roster


@dataclass(frozen=True)
class House:
    """Everything a route may use."""

    ledger: Ledger
    roster: Roster
    blobs: Blobs
    doorbell: Doorbell
    intake: Intake
    preset: Preset


def _house(request: Request) -> House:
    house: House = request.app.state.house
    return house


TheHouse = Annotated[House, Depends(_house)]
