"""What a model folder's evaluation says, and whether one model is worse than another.

`evaluation.subjects.{n}.reached` of `bench.identity`: how far n characters are kept, on a scale
from random other ones (0) to the true ones (1), with its standard error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PAINTERS = {"dit": "dit.safetensors", "vae": "vae.safetensors", "reader": "reader.safetensors"}
"""What draws, of the files of a model folder; an evaluation gives the sha256 of each that there is,
to say whose it is. It does not tell what encodes the prompt."""
SURE = 2.0  # standard errors of a difference, beyond which it is none of chance


def reached(evaluation: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """By number of subjects: how far they are kept, and the standard error of that. What was not
    measured is not in it."""
    rows = evaluation.get("subjects")
    found = {}
    for num_subjects, row in sorted(rows.items()) if isinstance(rows, Mapping) else ():
        try:
            found[str(num_subjects)] = (float(row["reached"]), float(row["reached_se"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def shortfalls(child: Mapping[str, Any], parent: Mapping[str, Any]) -> list[str]:
    """In words, where a model keeps characters less far than another, beyond chance, or was not
    measured where that one was."""
    own, told = reached(child), []
    for num_subjects, (wanted, wanted_se) in reached(parent).items():
        if num_subjects not in own:
            told.append(f"it was not measured with {num_subjects} subjects")
            continue
        value, se = own[num_subjects]
        # A value that is no number is not as good.
        if not value >= wanted - SURE * (se**2 + wanted_se**2) ** 0.5:
            told.append(
                f"it keeps {num_subjects} subjects {value:.2f} (± {se:.2f}) of the way,"
                f" the other {wanted:.2f} (± {wanted_se:.2f})"
            )
    return told
