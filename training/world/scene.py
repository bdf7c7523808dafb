"""What happens: a background, a light, and one to four characters with a role each.

Positions are in units of the frame height, x from 0 (left) to the aspect ratio, y from 0 (top)
to 1, so that one scene renders at any size. `tracks` turns roles into poses frame by frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.world.identity import Identity, is_held_out, near_twin, sample_identity

BACKGROUNDS = ("meadow", "beach", "desert", "forest", "snow", "street", "room", "stage")
LIGHTS = ("day", "dusk", "night")
MOTIONS = ("stands", "walks left", "walks right", "bounces", "spins", "comes closer", "swaps")
PLACES = ("far left", "left", "middle", "right", "far right")
PLACES_OF = {1: (2,), 2: (1, 3), 3: (1, 2, 3), 4: (0, 1, 3, 4)}
MAX_SUBJECTS = 4
ASPECT = 1.5
SWAP = MOTIONS.index("swaps")
# Pose columns of one character in one frame.
POSE = ("x", "y", "radius", "tilt", "squash", "turn", "nod", "gaze_x", "gaze_y", "smile", "open",
        "step", "light_x", "light_y", "light")
TWIN_TRIES = 1000
_TWIN_PROBABILITY = 0.3


@dataclass(frozen=True)
class Role:
    """What one character does. `place` and `motion` index PLACES and MOTIONS; `partner` is the
    index of the other one of a swap, else -1."""

    identity: Identity
    motion: int
    place: int
    partner: int = -1


@dataclass(frozen=True)
class Scene:
    """A clip's script. Everything not named here (phases, clouds, sizes) follows from `seed`."""

    background: int
    light: int
    cast: tuple[Role, ...]
    seed: int

    def tracks(self, num_frames: int, aspect: float = ASPECT) -> np.ndarray:
        """Poses as float32 [S, T, len(POSE)]."""
        poses = [
            _track(self, k, num_frames, np.random.default_rng((self.seed, 17, k)), aspect)
            for k in range(len(self.cast))
        ]
        return np.stack(poses).astype(np.float32)

    def order(self, num_frames: int, aspect: float = ASPECT) -> list[int]:
        """Drawing order, back to front: who stands lower in the frame is nearer."""
        feet = self.tracks(num_frames, aspect)[:, :, 1].mean(axis=1)
        return [int(k) for k in np.argsort(feet, kind="stable")]

    def boxes(self, num_frames: int, height: int, width: int) -> np.ndarray:
        """Bodies with hat and feet as float32 [S, T, 4] = x0, y0, x1, y1 in pixels, clipped."""
        tracks = self.tracks(num_frames, width / height) * height
        x, y, r = (tracks[..., i] for i in range(3))
        box = np.stack([x - 1.1 * r, y - 1.45 * r, x + 1.1 * r, y + 1.25 * r], axis=-1)
        return np.clip(box, 0, [width, height, width, height]).astype(np.float32)

    def visibility(self, num_frames: int, height: int, width: int) -> np.ndarray:
        """Share of each body's box that no nearer body covers and that is in the frame, [S, T]."""
        tracks = self.tracks(num_frames, width / height) * height
        order = self.order(num_frames, width / height)
        grid_y, grid_x = np.mgrid[0:height:2, 0:width:2] + 0.5
        shares = np.zeros(tracks.shape[:2], np.float32)
        taken = np.zeros((num_frames, *grid_x.shape), bool)
        for k in reversed(order):
            x, y, r = (tracks[k, :, i][:, None, None] for i in range(3))
            inside = (grid_x - x) ** 2 + (grid_y - y) ** 2 < r**2
            area = np.maximum(np.pi * tracks[k, :, 2] ** 2 / 4, 1.0)
            shares[k] = np.minimum((inside & ~taken).sum(axis=(1, 2)) / area, 1.0)
            taken |= inside
        return shares


def sample_scene(
    rng: np.random.Generator,
    num_subjects: int,
    *,
    split: str = "train",
    twins: bool | None = None,
) -> Scene:
    """A random scene of `num_subjects` (1 to 4) distinct characters.

    `twins` puts a near-twin pair on stage (None: in 30 % of scenes with two or more).
    `split="heldout"` casts held-out identities only, `"train"` none of them.
    """
    if not 1 <= num_subjects <= MAX_SUBJECTS:
        raise ValueError(f"num_subjects={num_subjects}: must be 1 to {MAX_SUBJECTS}")
    twins = rng.random() < _TWIN_PROBABILITY if twins is None else twins
    identities = _sample_cast(rng, num_subjects, split == "heldout", twins)
    places = rng.permutation(PLACES_OF[num_subjects])
    motions, partners = _sample_motions(rng, num_subjects)
    roles = (
        Role(identity, motions[k], int(places[k]), partners[k])
        for k, identity in enumerate(identities)
    )
    background, light = int(rng.integers(len(BACKGROUNDS))), int(rng.choice(3, p=(0.6, 0.2, 0.2)))
    return Scene(background, light, tuple(roles), int(rng.integers(2**31)))


def _sample_cast(
    rng: np.random.Generator, num_subjects: int, held_out: bool, twins: bool
) -> list[Identity]:
    cast: list[Identity] = []
    tries = 0
    while len(cast) < num_subjects:
        pair = twins and len(cast) == 1
        identity = near_twin(cast[0], rng) if pair else sample_identity(rng)
        if identity not in cast and is_held_out(identity) == held_out:
            cast.append(identity)
        tries += 1
        if tries % TWIN_TRIES == 0:
            cast.clear()  # some characters have no near-twin in this split: begin with another
    rng.shuffle(cast)  # type: ignore[arg-type]
    return cast


def _sample_motions(rng: np.random.Generator, num_subjects: int) -> tuple[list[int], list[int]]:
    motions = [int(rng.integers(SWAP)) for _ in range(num_subjects)]
    partners = [-1] * num_subjects
    if num_subjects > 1 and rng.random() < 0.15:
        a, b = (int(k) for k in rng.choice(num_subjects, 2, replace=False))
        motions[a] = motions[b] = SWAP
        partners[a], partners[b] = b, a
    return motions, partners


def _home(scene: Scene, k: int, aspect: float) -> tuple[float, float, float]:
    """Where character k stands at the start: x, y and body radius (frame heights)."""
    num = len(scene.cast)
    rng = np.random.default_rng((scene.seed, 5, k))
    slots = PLACES_OF[num]
    index = slots.index(scene.cast[k].place)
    x = aspect * (index + 0.5) / num + rng.uniform(-0.05, 0.05)
    radius = (0.27, 0.23, 0.20, 0.17)[num - 1] * rng.uniform(0.88, 1.1) * min(1.0, aspect / ASPECT)
    if num == 1:
        x = aspect * 0.5 + rng.uniform(-0.2, 0.2)
    y = 0.84 - radius + rng.uniform(-0.06, 0.06)
    return x, y, radius


def _track(
    scene: Scene, k: int, num_frames: int, rng: np.random.Generator, aspect: float
) -> np.ndarray:
    """Poses of character k, float64 [T, len(POSE)]."""
    role = scene.cast[k]
    s = np.linspace(0.0, 1.0, num_frames)
    pose = np.zeros((num_frames, len(POSE)))
    col = {name: pose[:, i] for i, name in enumerate(POSE)}
    x, y, radius = _home(scene, k, aspect)
    phase, beat = rng.uniform(0, 2 * np.pi), 2 * np.pi * rng.uniform(1.6, 2.4)
    col["x"][:], col["y"][:], col["radius"][:] = x, y, radius
    wave = np.sin(beat * s + phase)
    col["tilt"][:] = rng.uniform(-0.12, 0.12) + 0.05 * wave
    col["squash"][:] = 1.0 + 0.03 * wave
    _express(col, s, rng)
    _MOVES[MOTIONS[role.motion]](col, s, wave, rng)
    if role.motion == SWAP:
        _swap(col, s, _home(scene, role.partner, aspect), k < role.partner)
    _illuminate(col, scene)
    return pose


def _express(col: dict[str, np.ndarray], s: np.ndarray, rng: np.random.Generator) -> None:
    """Face: gaze, smile, mouth and head turn drift slowly from one draw to another."""
    for name, low, high in (("turn", -0.2, 0.2), ("nod", -0.1, 0.1), ("gaze_x", -1, 1),
                            ("gaze_y", -1, 1), ("smile", -1, 1), ("open", -0.4, 1)):
        a, b = rng.uniform(low, high, 2)
        col[name][:] = a + (b - a) * s
    col["open"][:] = np.maximum(col["open"], 0.0)


def _stand(col: dict[str, np.ndarray], s: np.ndarray, wave: np.ndarray,
           rng: np.random.Generator) -> None:
    col["step"][:] = 0.0


def _walk(sign: int) -> Callable[..., None]:
    def move(col: dict[str, np.ndarray], s: np.ndarray, wave: np.ndarray,
             rng: np.random.Generator) -> None:
        span = rng.uniform(0.32, 0.48)
        col["x"] += sign * span * (s - 0.5)
        col["y"] -= 0.02 * np.abs(wave)
        col["turn"][:] = np.clip(col["turn"] + 0.25 * sign, -0.3, 0.3)
        col["gaze_x"][:] = sign
        col["step"][:] = np.sin(2 * np.pi * 2.0 * s)
    return move


def _bounce(col: dict[str, np.ndarray], s: np.ndarray, wave: np.ndarray,
            rng: np.random.Generator) -> None:
    hop = np.abs(np.sin(np.pi * 2.0 * s + rng.uniform(0, np.pi)))
    col["y"] -= rng.uniform(0.14, 0.22) * hop
    col["squash"][:] = 0.88 + 0.2 * hop


def _spin(col: dict[str, np.ndarray], s: np.ndarray, wave: np.ndarray,
          rng: np.random.Generator) -> None:
    col["tilt"] += rng.choice((-1, 1)) * 2 * np.pi * s


def _approach(col: dict[str, np.ndarray], s: np.ndarray, wave: np.ndarray,
              rng: np.random.Generator) -> None:
    grow = 0.72 + 0.55 * s
    col["y"] += 0.12 * (s - 0.5) - col["radius"] * (grow - 1.0) * 0.5
    col["radius"] *= grow
    col["step"][:] = np.sin(2 * np.pi * 2.0 * s)


def _swap(col: dict[str, np.ndarray], s: np.ndarray, target: tuple[float, float, float],
          in_front: bool) -> None:
    """Crosses over to the partner's place; one of the two passes in front."""
    ease = s * s * (3 - 2 * s)
    sign = np.sign(target[0] - col["x"][0])
    col["x"] += (target[0] - col["x"]) * ease
    col["y"] += (0.05 if in_front else -0.05) * np.sin(np.pi * s)
    col["turn"][:], col["gaze_x"][:] = 0.2 * sign, sign
    col["step"][:] = np.sin(2 * np.pi * 2.0 * s)


_MOVES: dict[str, Callable[..., None]] = {
    "stands": _stand, "walks left": _walk(-1), "walks right": _walk(+1), "bounces": _bounce,
    "spins": _spin, "comes closer": _approach, "swaps": _stand,
}


def _illuminate(col: dict[str, np.ndarray], scene: Scene) -> None:
    angle = np.random.default_rng((scene.seed, 7)).uniform(0.2, np.pi - 0.2)
    col["light_x"][:], col["light_y"][:] = np.cos(angle), np.sin(angle)
    col["light"][:] = (1.0, 0.88, 0.74)[scene.light]
