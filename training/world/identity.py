"""Who a character is: ten discrete factors, 1.1 billion identities, and their near-twins.

An identity says nothing about pose, expression, light or place: those belong to a scene.
Factors hold small integers; `FACTORS` maps each to the names that captions use.
"""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass, fields, replace

import numpy as np

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.97, 0.52, 0.07),
    "yellow": (0.98, 0.87, 0.16),
    "lime": (0.62, 0.88, 0.18),
    "green": (0.07, 0.53, 0.20),
    "teal": (0.05, 0.58, 0.58),
    "sky": (0.45, 0.80, 0.98),
    "blue": (0.12, 0.24, 0.80),
    "purple": (0.50, 0.16, 0.68),
    "pink": (0.98, 0.46, 0.72),
    "brown": (0.48, 0.28, 0.13),
    "white": (0.95, 0.95, 0.93),
}
COLOR_NAMES = tuple(COLORS)
FACTORS: dict[str, tuple[str, ...]] = {
    "shape": ("ball", "cube", "triangle", "star", "egg", "drop", "heart", "cloud"),
    "body": COLOR_NAMES,
    "second": COLOR_NAMES,
    "pattern": ("plain", "stripes", "bars", "dots", "checks", "two-tone", "belly"),
    "eyes": ("one eye", "two eyes", "three eyes", "sleepy eyes", "wide eyes", "tall eyes"),
    "mouth": ("plain", "tooth", "beak", "moustache", "lips"),
    "hat": ("none", "top hat", "crown", "party hat", "cap", "antenna", "horns", "ears"),
    "hat_color": COLOR_NAMES,
    "accessory": ("none", "scarf", "bow tie", "glasses", "badge", "cheeks"),
    "accessory_color": COLOR_NAMES,
}
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, order=True)
class Identity:
    """One character. Every field indexes into `FACTORS[field]`; 0 where a factor is unseen."""

    shape: int
    body: int
    second: int
    pattern: int
    eyes: int
    mouth: int
    hat: int
    hat_color: int
    accessory: int
    accessory_color: int

    def value(self, factor: str) -> str:
        """The caption's name of one factor's value, e.g. `value("hat") == "top hat"`."""
        return FACTORS[factor][getattr(self, factor)]


FACTOR_NAMES = tuple(f.name for f in fields(Identity))


def canonical(identity: Identity) -> Identity:
    """The one representative of identities that look the same (no hat has no hat colour)."""
    return replace(
        identity,
        hat_color=identity.hat_color if identity.hat else 0,
        accessory_color=identity.accessory_color if identity.accessory else 0,
    )


def _is_valid(identity: Identity) -> bool:
    """Two colours that touch must differ, or a factor could not be seen."""
    clash_hat = identity.hat and identity.hat_color == identity.body
    clash_accessory = identity.accessory and identity.accessory_color == identity.body
    return identity.body != identity.second and not clash_hat and not clash_accessory


def sample_identity(rng: np.random.Generator) -> Identity:
    """A uniform draw over the valid identities."""
    while True:
        values = [int(rng.integers(len(FACTORS[name]))) for name in FACTOR_NAMES]
        identity = canonical(Identity(*values))
        if _is_valid(identity):
            return identity


def near_twin(
    identity: Identity, rng: np.random.Generator, factors: tuple[str, ...] | None = None
) -> Identity:
    """An identity that differs in exactly one factor (of `factors`, default any)."""
    choices = tuple(factors) if factors else FACTOR_NAMES
    for _ in range(1000):
        name = choices[int(rng.integers(len(choices)))]
        value = int(rng.integers(len(FACTORS[name])))
        twin = canonical(replace(identity, **{name: value}))
        if _is_valid(twin) and _num_differences(twin, identity) == 1:
            return twin
    raise ValueError(f"factors={choices}: no valid near-twin of {identity}")


def differing(a: Identity, b: Identity) -> list[str]:
    """Names of the factors in which two characters differ, in the order of FACTOR_NAMES."""
    return [name for name in FACTOR_NAMES if getattr(a, name) != getattr(b, name)]


def _num_differences(a: Identity, b: Identity) -> int:
    """Counts factors that differ; an absent hat (accessory) and its colour are one factor."""
    names = differing(a, b)
    for item, color in (("hat", "hat_color"), ("accessory", "accessory_color")):
        if item in names and color in names and 0 in (getattr(a, item), getattr(b, item)):
            names.remove(color)
    return len(names)


def is_held_out(identity: Identity) -> bool:
    """Whether this identity is kept from all training: a fixed tenth, by hash of the factors."""
    digest = hashlib.sha256(bytes(astuple(canonical(identity)))).digest()
    return digest[0] % HELD_OUT_ONE_IN == 0


def describe(identity: Identity, factors: tuple[str, ...] = FACTOR_NAMES) -> str:
    """A noun phrase of the chosen factors: "striped green star with three eyes"."""
    head = []
    if "pattern" in factors and identity.pattern:
        head.append(_pattern_words(identity, "second" in factors))
    if "body" in factors:
        head.append(identity.value("body"))
    head.append(identity.value("shape") if "shape" in factors else "character")
    tail = _features(identity, factors)
    return " ".join(head) + (f" with {_join(tail)}" if tail else "")


def _pattern_words(identity: Identity, with_color: bool) -> str:
    adjective = {
        "stripes": "striped", "bars": "barred", "dots": "dotted", "checks": "checked",
        "two-tone": "two-tone", "belly": "bellied",
    }[identity.value("pattern")]
    return f"{identity.value('second')} {adjective}" if with_color else adjective


def _features(identity: Identity, factors: tuple[str, ...]) -> list[str]:
    tail = []
    if "eyes" in factors:
        tail.append(identity.value("eyes"))
    if "mouth" in factors and identity.mouth:
        word = identity.value("mouth")
        tail.append(word if word == "lips" else f"a {word}")
    for item in ("hat", "accessory"):
        if item in factors and getattr(identity, item):
            tail.append(_worn(identity, item, f"{item}_color" in factors))
    return tail


def _worn(identity: Identity, item: str, with_color: bool) -> str:
    word = identity.value(item)
    plural = word in ("horns", "ears", "glasses", "cheeks")
    phrase = f"{identity.value(item + '_color')} {word}" if with_color else word
    article = "" if plural else ("an " if phrase[0] in "aeiou" else "a ")
    return article + phrase


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
