"""Names that other servers of /v1/videos gave to fields, so that their clients work unchanged.

Taken from vLLM-Omni 0.30 (`video/generation/helpers.py`) and SGLang 0.5.23 (`video_api.py`). What
only their models have is refused by name, not ignored: a client that sends it means something.
"""

from collections.abc import Mapping
from typing import Any

from service.errors import RequestError

SAME = {
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "num_outputs_per_prompt": "n",
}
ABSENT = {
    "flow_shift": "the schedule's shift belongs to the model here",
    "guidance_scale_2": "there is one model here, not one for each half of the steps",
    "boundary_ratio": "there is one model here, not one for each half of the steps",
    "lora": "published adapters are models of their own here: name one as `model`",
}


def translated(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields under our own names.

    Raises:
        RequestError: one of ABSENT, a field under both of its names, or half a size.
    """
    found = dict(fields)
    for name, why in ABSENT.items():
        if name in found:
            raise RequestError(f"{name}: {why}; leave it out.", name, "unsupported_field")
    for alias, name in SAME.items():
        if alias in found:
            _set(found, name, found.pop(alias), alias)
    sides = [name for name in ("width", "height") if name in found]
    if len(sides) == 1:
        raise RequestError(f"{sides[0]}: give width and height, or size.", sides[0])
    if sides:
        wide, tall = found.pop("width"), found.pop("height")
        _set(found, "size", f"{wide}x{tall}", "width")
    return found


def _set(fields: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if name in fields:
        raise RequestError(f"{alias}: is {name}, which is given too.", alias, "duplicate_field")
    fields[name] = value
