"""What the miniature's VLM learns from: pictures, clips, and conversations about them.

Pictures are drawn once and kept in one file per split; conversations are made anew for every batch.
All of it is a function of (split, batch index), so that a run resumes exactly.

Legend: G portrait groups, M films, T kept frames (5), S cast slots (4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from engine.vlm import content, conversation
from training.text import UNSAID, places_said, rename
from training.world.caption import caption
from training.world.identity import (
    FACTORS,
    Identity,
    describe,
    differing,
    is_held_out,
    near_twin,
    sample_identity,
)
from training.world.render import render_clip, render_reference
from training.world.scene import (
    BACKGROUNDS,
    LIGHTS,
    MAX_SUBJECTS,
    MOTIONS,
    PLACES,
    Role,
    Scene,
    sample_scene,
)

NUM_FRAMES = 5
VIEWS = 3  # per portrait group: the character twice, then its near-twin
NUM_WORDS = ("none", "one", "two", "three", "four")
FACTOR_QUESTIONS = {
    "shape": "which shape",
    "body": "which color is the body",
    "second": "which second color",
    "pattern": "which pattern",
    "eyes": "which eyes",
    "mouth": "which mouth",
    "hat": "which hat",
    "hat_color": "which color is the hat",
    "accessory": "which accessory",
    "accessory_color": "which color is the accessory",
}
CAST_WEIGHTS = {
    "describe": 0.25, "motion": 0.25, "place": 0.1, "factor": 0.15, "who": 0.15,
    "background": 0.05, "light": 0.05,
}  # fmt: skip
DESCRIBE, HAPPENS, SAME = "describe this character", "what happens", "is this the same character"
WHERE, WHEN, HOW_MANY = "where is this", "what time is it", "how many characters"
# Words that questions and answers use beyond the captions'.
EXTRA_WORDS = (
    f"{DESCRIBE} {HAPPENS} {SAME} {WHERE} {WHEN} {HOW_MANY} user assistant does do who not said "
    "yes no the differ differs many video color second pattern mouth shape body which accessory "
    "hat stripes bars dots checks belly plain none one two three four day dusk night meadow beach "
    "desert forest snow street room stage ? : ."
).split()


@dataclass(frozen=True)
class Talk:
    """One conversation: a user turn over some pictures (uint8 [H, W, 3]) and the right answer.

    `identities[i]` is whom picture i shows (None: a frame), `roles[i]` (motion, place said) where
    the words give the pictured one a role; both supervise the picture's own tokens. `scene` is
    (background, light) of the frames.
    """

    kind: str
    words: str
    pictures: tuple[np.ndarray, ...]
    answer: str
    identities: tuple[Identity | None, ...] = ()
    roles: tuple[tuple[int, int], ...] = ()
    scene: tuple[int, int] | None = None

    def turn(self) -> str:
        """The conversation up to where the answer begins."""
        return conversation(self.words)


@dataclass(frozen=True)
class Album:
    """portraits uint8 [G, VIEWS, 64, 64, 3] with their identities; films uint8 [M, T, 64, 96, 3]
    with cast pictures uint8 [M, S, 64, 64, 3] and scripts."""

    identities: tuple[Identity, ...]
    twins: tuple[Identity, ...]
    portraits: np.ndarray
    films: np.ndarray
    casts: np.ndarray
    scenes: tuple[Scene, ...]
    split: str

    def person(self, group: int, view: int) -> tuple[Identity, np.ndarray]:
        """Whom view `view` of a group shows, and the picture."""
        who = self.twins[group] if view == VIEWS - 1 else self.identities[group]
        return who, self.portraits[group, view]


def _film_scene(index: int, split: str) -> Scene:
    rng = np.random.default_rng((index, split == "heldout", 43))
    return sample_scene(rng, 1 + int(rng.choice(4, p=(0.3, 0.35, 0.2, 0.15))), split=split)


def _draw_group(index: int, split: str) -> tuple[Identity, Identity, np.ndarray]:
    rng = np.random.default_rng((index, split == "heldout", 41))
    while True:
        who = sample_identity(rng)
        twin = near_twin(who, rng)
        if is_held_out(who) == is_held_out(twin) == (split == "heldout"):
            break
    views = [render_reference(identity, rng) for identity in (who, who, twin)]
    return who, twin, np.stack(views)


def _draw_film(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng((scene.seed, 47))
    cast = np.zeros((MAX_SUBJECTS, 64, 64, 3), np.uint8)
    for k, role in enumerate(scene.cast):
        cast[k] = render_reference(role.identity, rng)
    return render_clip(scene, NUM_FRAMES), cast


def open_album(path: Path, split: str, num_groups: int, num_films: int) -> Album:
    """Reads the pictures of a split, drawing them first when the file is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        groups = [_draw_group(i, split) for i in tqdm(range(num_groups), "portraits")]
        films = [_draw_film(_film_scene(i, split)) for i in tqdm(range(num_films), "films")]
        pair = [[astuple(who), astuple(twin)] for who, twin, _ in groups]
        tensors = {
            "identities": np.array(pair, np.uint8),
            "portraits": np.stack([views for *_, views in groups]),
            "films": np.stack([frames for frames, _ in films]),
            "casts": np.stack([cast for _, cast in films]),
        }
        part = path.with_suffix(".part")
        save_file(tensors, part)
        part.rename(path)
    tensors = load_file(path)
    who, twins = ([Identity(*map(int, row)) for row in rows]
                  for rows in tensors["identities"].transpose(1, 0, 2))
    scenes = tuple(_film_scene(i, split) for i in range(len(tensors["films"])))
    return Album(tuple(who), tuple(twins), tensors["portraits"], tensors["films"],
                 tensors["casts"], scenes, split)


def factor_answer(identity: Identity, factor: str) -> str:
    """The name of a factor's value; "none" for the colour of what is not worn."""
    item = factor.removesuffix("_color")
    if item != factor and not getattr(identity, item):
        return "none"
    return identity.value(factor)


def portrait_talk(album: Album, rng: np.random.Generator) -> Talk:
    """One picture: describe it, or tell one factor."""
    who, picture = album.person(int(rng.integers(len(album.identities))), int(rng.integers(VIEWS)))
    if rng.random() < 0.6:
        question, answer, kind = DESCRIBE, describe(who), "describe"
    else:
        factor = str(rng.choice(list(FACTORS)))
        question, answer = FACTOR_QUESTIONS[factor], factor_answer(who, factor)
        kind = factor
    return Talk(kind, content("", (), 1, question), (picture,), answer, (who,))


def pair_talk(album: Album, rng: np.random.Generator) -> Talk:
    """Two pictures: the same character, or a near-twin (and in what), or somebody else?"""
    group = int(rng.integers(len(album.identities)))
    view = int(rng.integers(2))
    who, first = album.person(group, view)
    chance = rng.random()
    if chance < 0.4:
        (other, second), answer = album.person(group, 1 - view), "yes"
    elif chance < 0.8:
        other, second = album.person(group, VIEWS - 1)
        answer = f"no, the {differing(who, other)[0].replace('_', ' ')} differs"
    else:
        group = (group + 1 + int(rng.integers(len(album.identities) - 1))) % len(album.identities)
        (other, second), answer = album.person(group, view), "no, many differ"
    people = [(who, first), (other, second)]
    if rng.random() < 0.5:
        people.reverse()
    words = content("", (), 2, SAME)
    pictures = tuple(picture for _, picture in people)
    return Talk("same", words, pictures, answer, tuple(identity for identity, _ in people))


def cast_talk(album: Album, rng: np.random.Generator) -> Talk:
    """Named pictures and a prompt: who looks how, who does what, where is whom."""
    scene, pictures = _recast(album, rng)
    style = str(rng.choice(("names", "both", "descriptions"), p=(0.75, 0.15, 0.1)))
    words = caption(scene, rng, style)
    if style != "descriptions" and rng.random() < 0.3:
        words = rename(words, [_short_name(rng) for _ in words.names])
    names = [words.text[slice(*spans[0])] for spans in words.spans]
    places = places_said(words)
    kind, question, answer = _ask_cast(scene, names, places, rng, CAST_WEIGHTS)
    roles = tuple((role.motion, places.get(k, UNSAID)) for k, role in enumerate(scene.cast))
    turn = content(words.text, names, len(names), question)
    identities = tuple(role.identity for role in scene.cast)
    return Talk(f"cast {kind}", turn, tuple(pictures), answer, identities, roles)


def prompt_talk(album: Album, rng: np.random.Generator) -> Talk:
    """A prompt without pictures: who does what, and where. A tenth of the length of a talk about a
    cast, so that roles can be asked for often; what is learned here is needed there."""
    scene, _ = _recast(album, rng)
    words = caption(scene, rng, "both" if rng.random() < 0.25 else "names")
    if rng.random() < 0.3:
        words = rename(words, [_short_name(rng) for _ in words.names])
    names = [words.text[slice(*spans[0])] for spans in words.spans]
    weights = {"motion": 0.4, "place": 0.2, "who": 0.3, "background": 0.05, "light": 0.05}
    kind, question, answer = _ask_cast(scene, names, places_said(words), rng, weights)
    return Talk(f"prompt {kind}", content(words.text, (), 0, question), (), answer)


def _short_name(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), int(rng.integers(2, 6))))


def _recast(album: Album, rng: np.random.Generator) -> tuple[Scene, list[np.ndarray]]:
    """A new script for characters of the album; twins play together in a third of them."""
    num = 1 + int(rng.choice(4, p=(0.2, 0.35, 0.25, 0.2)))
    scene = sample_scene(rng, num, twins=False)
    groups = rng.choice(len(album.identities), num, replace=False)
    people = [album.person(int(group), int(rng.integers(2))) for group in groups]
    if num > 1 and rng.random() < 0.33:
        people[1] = album.person(int(groups[0]), VIEWS - 1)
    order = rng.permutation(num)
    cast = tuple(
        replace(role, identity=people[order[k]][0]) for k, role in enumerate(scene.cast)
    )
    return replace(scene, cast=cast), [people[order[k]][1] for k in range(num)]


def _ask_cast(
    scene: Scene,
    names: list[str],
    places: dict[int, int],
    rng: np.random.Generator,
    weights: dict[str, float],
) -> tuple[str, str, str]:
    """(kind, question, answer), kinds as often as `weights` says."""
    k = int(rng.integers(len(names)))
    role, name = scene.cast[k], names[k]
    place = PLACES[places[k]] if k in places else "not said"
    factor = str(rng.choice(list(FACTORS)))
    factor_question = f"{FACTOR_QUESTIONS[factor]} of {name}"
    motion = MOTIONS[int(rng.choice([role.motion for role in scene.cast]))]
    actors = [names[j] for j, r in enumerate(scene.cast) if MOTIONS[r.motion] == motion]
    options = {
        "describe": (f"describe {name}", describe(role.identity)),
        "motion": (f"what does {name} do", MOTIONS[role.motion]),
        "place": (f"where is {name}", place),
        "factor": (factor_question, factor_answer(role.identity, factor)),
        "who": (f"who {motion}", " and ".join(actors)),
        "background": (WHERE, BACKGROUNDS[scene.background]),
        "light": (WHEN, LIGHTS[scene.light]),
    }
    kind = str(rng.choice(list(weights), p=list(weights.values())))
    return kind, *options[kind]


def film_talk(album: Album, rng: np.random.Generator) -> Talk:
    """Five frames of a clip: what happens, where, when, who does what; or about one picture."""
    index = int(rng.integers(len(album.films)))
    scene = album.scenes[index]
    frames = tuple(album.films[index])
    setting = (scene.background, scene.light)
    if rng.random() < 0.4:
        return _recognise(album, index, frames, rng)
    k = int(rng.integers(len(scene.cast)))
    role = scene.cast[k]
    short = _short(role)
    alone = sum(_short(other) == short for other in scene.cast) == 1
    options = [
        ("happens", HAPPENS, tell(scene)),
        ("background", WHERE, BACKGROUNDS[scene.background]),
        ("light", WHEN, LIGHTS[scene.light]),
        ("count", HOW_MANY, NUM_WORDS[len(scene.cast)]),
        ("motion", f"what does {short} do", MOTIONS[role.motion]),
    ]
    weights = np.array((0.5, 0.1, 0.1, 0.1, 0.2 if alone else 0.0))
    kind, question, answer = options[int(rng.choice(len(options), p=weights / weights.sum()))]
    words = content("", (), NUM_FRAMES, question)
    nobody = (None,) * NUM_FRAMES
    return Talk(f"film {kind}", words, frames, answer, nobody, scene=setting)


def _short(role: Role) -> str:
    return f"the {role.identity.value('body')} {role.identity.value('shape')}"


def tell(scene: Scene) -> str:
    """The canonical account of a clip, its characters from left to right as they start."""
    places = scene.tracks(NUM_FRAMES)[:, 0, 0]
    order = np.argsort(places, kind="stable")
    told = [f"{_short(scene.cast[k])} {MOTIONS[scene.cast[k].motion]}" for k in order]
    setting = f"{BACKGROUNDS[scene.background]}, {LIGHTS[scene.light]}"
    return f"{setting}: " + ", ".join(told)


def _recognise(
    album: Album, index: int, frames: tuple[np.ndarray, ...], rng: np.random.Generator
) -> Talk:
    """A named picture before the frames: is this one in the clip, and what does it do there?"""
    scene = album.scenes[index]
    k = int(rng.integers(len(scene.cast)))
    who, picture = scene.cast[k].identity, album.casts[index, k]
    name = _short_name(rng)
    if rng.random() < 0.5:
        kind, question, answer = "who motion", f"what does {name} do", MOTIONS[scene.cast[k].motion]
    elif rng.random() < 0.5:
        kind, question, answer = "present", f"is {name} in the video", "yes"
    else:
        group, view = int(rng.integers(len(album.identities))), int(rng.integers(VIEWS))
        who, picture = album.person(group, view)
        kind, question, answer = "present", f"is {name} in the video", "no"
    words = content("", (name,), 1 + NUM_FRAMES, question)
    nobody = (None,) * NUM_FRAMES
    setting = (scene.background, scene.light)
    return Talk(f"film {kind}", words, (picture, *frames), answer, (who, *nobody), scene=setting)


TALKS: dict[str, Callable[[Album, np.random.Generator], Talk]] = {
    "portrait": portrait_talk,
    "pair": pair_talk,
    "cast": cast_talk,
    "prompt": prompt_talk,
    "film": film_talk,
}


def talks(album: Album, index: int, sizes: dict[str, int]) -> list[Talk]:
    """Conversations of batch `index`: `sizes[kind]` of each kind."""
    rng = np.random.default_rng((index, album.split == "heldout", 53))
    return [TALKS[kind](album, rng) for kind, size in sizes.items() for _ in range(size)]


def picture_tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """Pictures of one size as uint8 [N, H, W, 3]."""
    return torch.from_numpy(np.stack(pictures))
