"""The caption grammar: who does what, where, in words that bind each role to its character.

A caption exists in two forms with the same words: `prompt`, in which a named subject is written
"@anna" (what a user types), and `text`, without the @ (what the encoders read). Spans are character
ranges of `text`, one tuple of ranges per subject in the order of the scene's cast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from training.world.identity import FACTOR_NAMES, Identity, describe
from training.world.scene import BACKGROUNDS, LIGHTS, MOTIONS, PLACES, SWAP, Scene

NAMES = tuple(
    (
        "anna bob carla dan emma finn greta hugo ida jack kim leo mia nick olga paul quinn "
        "rosa sam tina uma victor wanda xaver yara zoe amir bea chen dora eli fay gus hana "
        "ivo jun kaya lars mona nils otto pia remy suki theo ula vera walt yuki zed hero "
        "friend robot monster buddy star1 cat dog"
    ).split()
)
_VERBS = {
    "stands": ("stands still", "waits", "stays in place", "stands there"),
    "walks left": ("walks left", "walks to the left", "goes left", "strolls to the left"),
    "walks right": ("walks right", "walks to the right", "goes right", "strolls to the right"),
    "bounces": ("bounces", "bounces up and down", "jumps up and down", "hops"),
    "spins": ("spins", "spins around", "turns round and round", "twirls"),
    "comes closer": ("comes closer", "walks toward the camera", "approaches", "comes forward"),
}
_SWAPS = ("swaps places with", "trades places with", "changes places with")
_PLACES = {
    "far left": ("on the far left", "at the far left"), "left": ("on the left", "at the left"),
    "middle": ("in the middle", "in the center"), "right": ("on the right", "at the right"),
    "far right": ("on the far right", "at the far right"),
}
_WHERE = {
    "meadow": ("in a meadow", "on the green meadow"), "beach": ("at the beach", "by the sea"),
    "desert": ("in the desert", "among sand dunes"), "forest": ("in the forest", "in the woods"),
    "snow": ("in the snow", "on a snowy field"), "street": ("in the street", "in the city"),
    "room": ("in a room", "at home"), "stage": ("on a stage", "in the theater"),
}
_WHEN = {"day": ("", "by day", "in daylight"), "dusk": ("at dusk", "at sunset"),
         "night": ("at night", "by moonlight")}
_JOINS = (" while ", " and ", ", ", "; ")
STYLES = ("names", "descriptions", "both")


@dataclass(frozen=True)
class Caption:
    """One caption. `spans[k]` are the (start, end) ranges of subject k in `text`."""

    text: str
    prompt: str
    names: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]


class _Writer:
    """Collects the two forms of a sentence and where its subjects stand."""

    def __init__(self, num_subjects: int) -> None:
        self.text, self.prompt = "", ""
        self.spans: list[list[tuple[int, int]]] = [[] for _ in range(num_subjects)]

    def say(self, words: str) -> None:
        self.text += words
        self.prompt += words

    def subject(self, k: int, words: str, *, named: bool) -> None:
        self.spans[k].append((len(self.text), len(self.text) + len(words)))
        self.text += words
        self.prompt += f"@{words}" if named else words


def caption(scene: Scene, rng: np.random.Generator, style: str | None = None) -> Caption:
    """Writes a caption of the scene; `style` None draws one.

    Styles: "names" ("anna walks left"), "descriptions" ("the green star walks left"), "both"
    ("anna, the green star, walks left").
    """
    style = str(rng.choice(STYLES, p=(0.6, 0.15, 0.25))) if style is None else style
    if style not in STYLES:
        raise ValueError(f"style={style!r}: must be one of {STYLES}")
    names = _pick_names(rng, len(scene.cast))
    factors = tuple(n for n in FACTOR_NAMES if rng.random() < 0.45 or n in ("shape", "body"))
    writer = _Writer(len(scene.cast))
    setting = _setting(scene, rng)
    lead = rng.random() < 0.3
    if lead:
        writer.say(setting + ", ")
    _clauses(writer, scene, rng, names, style, factors)
    writer.say("" if lead else " " + setting)
    spans = tuple(tuple(s) for s in writer.spans)
    return Caption(writer.text, writer.prompt, tuple(names), spans)


def _setting(scene: Scene, rng: np.random.Generator) -> str:
    where = str(rng.choice(_WHERE[BACKGROUNDS[scene.background]]))
    when = str(rng.choice(_WHEN[LIGHTS[scene.light]]))
    return f"{where} {when}".strip()


def _pick_names(rng: np.random.Generator, num: int) -> list[str]:
    """Mostly given names, sometimes letters and digits nobody has seen, never one twice."""
    names: list[str] = []
    while len(names) < num:
        name = str(rng.choice(NAMES))
        if rng.random() < 0.25:
            letters = list("abcdefghijklmnopqrstuvwxyz0123456789_")
            name = "".join(rng.choice(letters[:26], 1)) + "".join(
                rng.choice(letters, int(rng.integers(1, 8))))
        if name not in names:
            names.append(name)
    return names


def _clauses(writer: _Writer, scene: Scene, rng: np.random.Generator, names: list[str],
             style: str, factors: tuple[str, ...]) -> None:
    order = [int(k) for k in rng.permutation(len(scene.cast))]
    told: set[int] = set()
    num_told = 0
    for k in order:
        if k in told:
            continue
        if num_told:
            writer.say(str(rng.choice(_JOINS)))
        _mention(writer, k, scene.cast[k].identity, names[k], style, factors)
        num_told += 1
        told.add(k)
        _place(writer, scene, k, rng)
        _verb(writer, scene, k, rng, names, style, factors, told)


def _mention(writer: _Writer, k: int, identity: Identity, name: str, style: str,
             factors: tuple[str, ...]) -> None:
    if style == "descriptions":
        writer.subject(k, "the " + describe(identity, factors), named=False)
        return
    writer.subject(k, name, named=True)
    if style == "both":
        writer.say(f", the {describe(identity, factors)},")


def _place(writer: _Writer, scene: Scene, k: int, rng: np.random.Generator) -> None:
    """Says the place; always where the motion alone does not tell two characters apart."""
    role = scene.cast[k]
    shared = sum(r.motion == role.motion for r in scene.cast) > 1
    if len(scene.cast) > 1 and (shared or rng.random() < 0.6):
        writer.say(" " + str(rng.choice(_PLACES[PLACES[role.place]])))


def _verb(writer: _Writer, scene: Scene, k: int, rng: np.random.Generator, names: list[str],
          style: str, factors: tuple[str, ...], told: set[int]) -> None:
    role = scene.cast[k]
    if role.motion != SWAP:
        writer.say(" " + str(rng.choice(_VERBS[MOTIONS[role.motion]])))
        return
    writer.say(f" {rng.choice(_SWAPS)} ")
    partner = role.partner
    short = "names" if style == "both" else style
    _mention(writer, partner, scene.cast[partner].identity, names[partner], short, factors)
    if partner not in told:
        told.add(partner)
        _place(writer, scene, partner, rng)


def parse(text: str) -> dict[str, str]:
    """Reads background and light back from a caption or prompt; absent keys were not said."""
    found = {}
    for key, table in (("background", _WHERE), ("light", _WHEN)):
        for value, phrases in table.items():
            if any(phrase and phrase in text for phrase in phrases):
                found[key] = value
    return found
