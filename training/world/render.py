"""Draws characters and scenes with signed distance functions: analytic anti-aliasing, any size.

Legend: T frames, H W frame pixels, K window pixels. Colours are linear blends in sRGB, [0, 1].
A character is painted back to front into a window [T, 4, K, K] (premultiplied RGB, alpha) that
follows it, then laid over the frames. Body coordinates: u right, v up, body radius 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.world.backgrounds import paint_background
from training.world.identity import COLORS, Identity
from training.world.scene import POSE, Scene
from training.world.shapes import PATTERNS, SHAPES, box, ellipse, polygon, segment

_PALETTE = torch.tensor(list(COLORS.values()))
_WINDOW_RADII = 1.75
_INK = torch.tensor((0.09, 0.07, 0.12))
_WHITE = torch.tensor((0.98, 0.98, 0.98))


@dataclass(frozen=True)
class _Canvas:
    """A window being painted: `u_TKK, v_TKK` in body units and what a unit is in pixels."""

    rgba_T4KK: Tensor
    u_TKK: Tensor
    v_TKK: Tensor
    px_T11: Tensor

    def paint(self, distance_TKK: Tensor, color: Tensor, opacity: float = 1.0) -> None:
        """Lays `color` ([3] or [T, 3, K, K]) over where the distance (body units) is negative."""
        cover = (0.5 - distance_TKK * self.px_T11).clamp_(0, 1)[:, None]
        if opacity != 1.0:
            cover = cover * opacity
        color = color.view(1, 3, 1, 1) if color.ndim == 1 else color
        self.rgba_T4KK.mul_(1 - cover)
        self.rgba_T4KK[:, :3].addcmul_(cover, color.expand(cover.shape[0], 3, *cover.shape[2:]))
        self.rgba_T4KK[:, 3:].add_(cover)


def render_clip(
    scene: Scene,
    num_frames: int = 17,
    height: int = 64,
    width: int = 96,
    moment: int | None = None,
) -> np.ndarray:
    """The scene as uint8 frames [T, H, W, 3]; with a `moment`, only that frame of the T."""
    aspect = width / height
    tracks = torch.from_numpy(scene.tracks(num_frames, aspect))
    tracks[..., :3] *= height
    ground_S = tracks[..., 1].amax(1)  # who jumps leaves the shadow where it was
    if moment is not None:
        tracks = tracks[:, moment : moment + 1]
    frame_3HW = paint_background(scene.background, scene.light, scene.seed, height, width)
    video_T3HW = frame_3HW.expand(tracks.shape[1], 3, height, width).clone()
    for k in scene.order(num_frames, aspect):
        _shadow(video_T3HW, tracks[k], ground_S[k])
        _lay_over(video_T3HW, scene.cast[k].identity, tracks[k])
    return _to_uint8(video_T3HW)


def render_reference(
    identity: Identity,
    rng: np.random.Generator,
    size: int = 64,
    pose: np.ndarray | None = None,
) -> np.ndarray:
    """One picture of a character, uint8 [size, size, 3].

    The pose (radius, tilt, face, light) is drawn from `rng`: a cross-pair with any clip. A given
    `pose` (one row of `Scene.tracks`) is copied instead: the same-pose kind.
    """
    row = random_pose(rng) if pose is None else np.array(pose, np.float32)
    row[:3] = _reference_place(rng)
    row[:3] *= size
    frame_3HW = _reference_background(rng, size)
    _lay_over(frame_3HW[None], identity, torch.from_numpy(row)[None])
    return _to_uint8(frame_3HW[None])[0]


def random_pose(rng: np.random.Generator) -> np.ndarray:
    """A pose for a portrait, float32 [len(POSE)]; place and radius are left at 0."""
    angle = rng.uniform(0.1, np.pi - 0.1)
    draw = {
        "tilt": rng.normal(0, 0.22), "squash": rng.uniform(0.92, 1.08),
        "turn": rng.uniform(-0.28, 0.28), "nod": rng.uniform(-0.12, 0.12),
        "gaze_x": rng.uniform(-1, 1), "gaze_y": rng.uniform(-1, 1),
        "smile": rng.uniform(-1, 1), "open": max(0.0, rng.uniform(-0.5, 1.0)),
        "step": rng.uniform(-1, 1), "light_x": np.cos(angle), "light_y": np.sin(angle),
        "light": rng.uniform(0.78, 1.05),
    }
    return np.array([draw.get(name, 0.0) for name in POSE], np.float32)


def _reference_place(rng: np.random.Generator) -> tuple[float, float, float]:
    radius = rng.uniform(0.26, 0.33)
    return 0.5 + rng.uniform(-0.04, 0.04), 0.53 + rng.uniform(-0.03, 0.03), radius


def _reference_background(rng: np.random.Generator, size: int) -> Tensor:
    """Mostly a plain or softly graded studio wall, sometimes a place of the world."""
    if rng.random() < 0.25:
        picked = int(rng.integers(8)), int(rng.integers(3)), int(rng.integers(2**31))
        return paint_background(*picked, size, size).clone()
    base = torch.tensor(rng.uniform(0.55, 0.98) + rng.uniform(-0.08, 0.08, 3), dtype=torch.float32)
    slope = torch.linspace(0, float(rng.uniform(-0.15, 0.15)), size)[None, :, None]
    return (base[:, None, None] + slope).clamp(0, 1).expand(3, size, size).clone()


def _to_uint8(video_T3HW: Tensor) -> np.ndarray:
    scaled = (video_T3HW.clamp(0, 1) * 255).round_().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()


def _shadow(video_T3HW: Tensor, pose_TP: Tensor, lowest: Tensor) -> None:
    """A soft ellipse on the ground, which is under the feet where the body is `lowest`."""
    height, width = video_T3HW.shape[2:]
    x, _, radius = (pose_TP[:, i].view(-1, 1, 1) for i in range(3))
    ground = lowest + radius
    u = (torch.arange(width)[None, None] + 0.5 - x) / radius
    v = (torch.arange(height)[None, :, None] + 0.5 - ground) / (0.3 * radius)
    dark = 0.35 * (1.2 - (u * u + v * v)).clamp(0, 1)
    video_T3HW.mul_((1 - dark)[:, None])


def _lay_over(video_T3HW: Tensor, identity: Identity, pose_TP: Tensor) -> None:
    """Paints one character over all frames, each through its own window. Changes the video."""
    height, width = video_T3HW.shape[2:]
    k = 2 * math.ceil(float(pose_TP[:, 2].max()) * _WINDOW_RADII)
    left = (pose_TP[:, 0] - k / 2).floor().int().tolist()
    top = (pose_TP[:, 1] - k / 2).floor().int().tolist()
    rgba_T4KK = draw_character(identity, pose_TP, left, top, k)
    for t, (x0, y0) in enumerate(zip(left, top, strict=True)):
        xa, xb, ya, yb = max(x0, 0), min(x0 + k, width), max(y0, 0), min(y0 + k, height)
        if xa >= xb or ya >= yb:
            continue
        part = rgba_T4KK[t, :, ya - y0 : yb - y0, xa - x0 : xb - x0]
        video_T3HW[t, :, ya:yb, xa:xb].mul_(1 - part[3:]).add_(part[:3])


def draw_character(
    identity: Identity, pose_TP: Tensor, left: list[int], top: list[int], k: int
) -> Tensor:
    """The character in windows of k x k pixels at (left, top) of each frame: [T, 4, K, K]."""
    p = {name: pose_TP[:, i].view(-1, 1, 1) for i, name in enumerate(POSE)}
    canvas = _place_canvas(p, left, top, k)
    body = SHAPES[identity.value("shape")](canvas.u_TKK, canvas.v_TKK)
    _feet(canvas, identity, p)
    _hat_behind(canvas, identity)
    canvas.paint(body - 0.09, _color(identity.body) * 0.22)
    canvas.paint(body, _body_colors(canvas, identity))
    _accessory_on_body(canvas, identity, body)
    face = _face_canvas(canvas, identity, p)
    _mouth(face, identity, p)
    _eyes(face, identity, p)
    _accessory_on_face(face, identity)
    _hat_in_front(canvas, identity)
    return _shade(canvas, p)


def _place_canvas(p: dict[str, Tensor], left: list[int], top: list[int], k: int) -> _Canvas:
    steps = torch.arange(k) + 0.5
    dx = (torch.tensor(left)[:, None, None] + steps[None, None] - p["x"]) / p["radius"]
    dy = (p["y"] - torch.tensor(top)[:, None, None] - steps[None, :, None]) / p["radius"]
    cos, sin = torch.cos(p["tilt"]), torch.sin(p["tilt"])
    u = (cos * dx + sin * dy) * p["squash"]
    v = (cos * dy - sin * dx) / p["squash"]
    return _Canvas(torch.zeros(len(left), 4, k, k), u, v, p["radius"])


def _color(index: int) -> Tensor:
    return _PALETTE[index]


# --- body -------------------------------------------------------------------------------------

def _body_colors(canvas: _Canvas, identity: Identity) -> Tensor:
    """The pattern as colours [T, 3, K, K], anti-aliased by its own distance."""
    u, v = canvas.u_TKK, canvas.v_TKK
    first, second = (_color(i).view(1, 3, 1, 1) for i in (identity.body, identity.second))
    pattern = identity.value("pattern")
    if pattern == "plain":
        return first.expand(u.shape[0], 3, *u.shape[1:])
    mix = (0.5 - PATTERNS[pattern](u, v) * canvas.px_T11).clamp(0, 1)[:, None]
    return first + (second - first) * mix


def _feet(canvas: _Canvas, identity: Identity, p: dict[str, Tensor]) -> None:
    for side in (-1, 1):
        lift = (side * p["step"]).clamp_min(0) * 0.16
        u = canvas.u_TKK - side * 0.38 - 0.08 * side * p["step"]
        foot = ellipse(u, canvas.v_TKK + 0.98 - lift, 0.3, 0.2)
        canvas.paint(foot - 0.06, _color(identity.second) * 0.22)
        canvas.paint(foot, _color(identity.second))


# --- head and clothes ---------------------------------------------------------------------------

def _outlined(canvas: _Canvas, distance: Tensor, color: Tensor) -> None:
    canvas.paint(distance - 0.07, color * 0.22)
    canvas.paint(distance, color)


def _hat_behind(canvas: _Canvas, identity: Identity) -> None:
    u, v, color = canvas.u_TKK.abs(), canvas.v_TKK, _color(identity.hat_color)
    hat = identity.value("hat")
    if hat == "ears":
        _outlined(canvas, ellipse(u - 0.62, v - 0.85, 0.3, 0.3), color)
    elif hat == "horns":
        _outlined(canvas, polygon(u, v, [(0.3, 0.6), (0.75, 0.5), (0.82, 1.3)], 0.04), color)
    elif hat == "antenna":
        canvas.paint(segment(u, v, (0.0, 0.7, 0.0, 1.3), 0.06), _INK)
        _outlined(canvas, ellipse(u, v - 1.38, 0.19, 0.19), color)


def _hat_in_front(canvas: _Canvas, identity: Identity) -> None:
    u, v, color = canvas.u_TKK, canvas.v_TKK - 0.72, _color(identity.hat_color)
    hat = identity.value("hat")
    if hat == "top hat":
        brim, crown = box(u, v - 0.03, 0.62, 0.08, 0.05), box(u, v - 0.36, 0.38, 0.36, 0.05)
        _outlined(canvas, torch.minimum(brim, crown), color)
        canvas.paint(box(u, v - 0.19, 0.38, 0.06), color * 0.35)
    elif hat == "crown":
        points = [(-0.52, 0.0), (0.52, 0.0), (0.58, 0.55), (0.27, 0.25), (0.0, 0.62),
                  (-0.27, 0.25), (-0.58, 0.55)]
        _outlined(canvas, polygon(u, v, points, 0.03), color)
    elif hat == "party hat":
        _outlined(canvas, polygon(u, v, [(-0.45, 0.0), (0.45, 0.0), (0.0, 0.82)], 0.04), color)
        canvas.paint(ellipse(u, v - 0.84, 0.13, 0.13), _WHITE)
    elif hat == "cap":
        dome = torch.maximum(ellipse(u, v, 0.55, 0.42), -v)
        visor = box(u - 0.55, v - 0.02, 0.38, 0.08, 0.06)
        _outlined(canvas, torch.minimum(dome, visor), color)


def _accessory_on_body(canvas: _Canvas, identity: Identity, body: Tensor) -> None:
    u, v, color = canvas.u_TKK, canvas.v_TKK, _color(identity.accessory_color)
    accessory = identity.value("accessory")
    if accessory == "scarf":
        band = torch.maximum(box(u, v + 0.56, 1.1, 0.13), body - 0.07)
        tail = box(u - 0.42, v + 0.82, 0.14, 0.26, 0.04)
        _outlined(canvas, torch.minimum(band, tail), color)
    elif accessory == "bow tie":
        corners = [(0.0, 0.05), (0.42, 0.22), (0.42, -0.22), (0.0, -0.05)]
        wings = polygon(u.abs(), v + 0.62, corners, 0.02)
        _outlined(canvas, wings, color)
    elif accessory == "badge":
        _outlined(canvas, ellipse(u + 0.4, v + 0.56, 0.2, 0.2), color)


def _face_canvas(canvas: _Canvas, identity: Identity, p: dict[str, Tensor]) -> _Canvas:
    """The face's own coordinates: turning the head moves the features over the body."""
    lift = 0.28 if identity.value("shape") == "triangle" else 0.0
    return _Canvas(
        canvas.rgba_T4KK,
        canvas.u_TKK - p["turn"],
        canvas.v_TKK + lift - p["nod"],
        canvas.px_T11,
    )


_EYES = {  # centres and radii: (u, v, half width, half height)
    "one eye": [(0.0, 0.28, 0.34, 0.34)],
    "two eyes": [(-0.28, 0.26, 0.23, 0.23), (0.28, 0.26, 0.23, 0.23)],
    "three eyes": [(-0.42, 0.24, 0.19, 0.19), (0.0, 0.34, 0.19, 0.19), (0.42, 0.24, 0.19, 0.19)],
    "sleepy eyes": [(-0.28, 0.26, 0.25, 0.25), (0.28, 0.26, 0.25, 0.25)],
    "wide eyes": [(-0.44, 0.28, 0.2, 0.2), (0.44, 0.28, 0.2, 0.2)],
    "tall eyes": [(-0.2, 0.3, 0.17, 0.33), (0.2, 0.3, 0.17, 0.33)],
}


def _eyes(canvas: _Canvas, identity: Identity, p: dict[str, Tensor]) -> None:
    sleepy = identity.value("eyes") == "sleepy eyes"
    for eu, ev, a, b in _EYES[identity.value("eyes")]:
        u, v = canvas.u_TKK - eu, canvas.v_TKK - ev
        white = ellipse(u, v, a, b)
        canvas.paint(white - 0.055, _INK)
        canvas.paint(white, _WHITE)
        pupil = ellipse(u - 0.4 * a * p["gaze_x"], v - 0.35 * b * p["gaze_y"], 0.5 * a, 0.5 * a)
        canvas.paint(torch.maximum(pupil, white), _INK)
        if sleepy:
            canvas.paint(torch.maximum(white - 0.055, 0.0 - v), _color(identity.body) * 0.6)


def _mouth(canvas: _Canvas, identity: Identity, p: dict[str, Tensor]) -> None:
    kind = identity.value("mouth")
    u, v = canvas.u_TKK, canvas.v_TKK + 0.3
    curve = 0.5 * p["smile"]
    if kind == "beak":
        gap = 0.14 * p["open"]
        upper = polygon(u, v - gap, [(-0.26, 0.1), (0.26, 0.1), (0.0, -0.2)], 0.04)
        canvas.paint(ellipse(u, v + gap + 0.02, 0.2, 0.16) - 0.05, _INK)
        _outlined(canvas, upper, torch.tensor((0.98, 0.66, 0.10)))
        return
    bent = v - curve * (u * u - 0.06)
    thick = 0.055 + 0.15 * p["open"]
    shape = _lens(u, bent, 0.34, thick)
    if kind == "lips":
        canvas.paint(shape - 0.12, torch.tensor((0.85, 0.08, 0.30)))
    canvas.paint(shape, torch.tensor((0.28, 0.05, 0.09)))
    if kind == "tooth":
        canvas.paint(box(u, bent + 0.02, 0.1, 0.14, 0.02) - 0.04, _INK)
        canvas.paint(box(u, bent + 0.02, 0.1, 0.14, 0.02), _WHITE)
    elif kind == "moustache":
        wings = ellipse(u.abs() - 0.2, bent - 0.16 + 0.15 * (u.abs() - 0.2), 0.28, 0.11)
        canvas.paint(wings, torch.tensor((0.16, 0.10, 0.07)))


def _lens(u: Tensor, v: Tensor, half_width: float, thick: Tensor) -> Tensor:
    """A mouth opening of half height `thick` that ends at ±half_width."""
    bulge = thick * (1 - (u / half_width) ** 2)
    return torch.maximum(v.abs() - bulge.clamp_min(0.03), u.abs() - half_width)


def _accessory_on_face(canvas: _Canvas, identity: Identity) -> None:
    color = _color(identity.accessory_color)
    accessory = identity.value("accessory")
    u, v = canvas.u_TKK, canvas.v_TKK
    if accessory == "glasses":
        eyes = _EYES[identity.value("eyes")]
        lenses = [ellipse(u - eu, v - ev, a + 0.1, b + 0.1) for eu, ev, a, b in eyes]
        rims = torch.stack([lens.abs() - 0.055 for lens in lenses]).amin(0)
        between = torch.maximum(
            segment(u, v, (-0.7, 0.28, 0.7, 0.28), 0.035), -torch.stack(lenses).amin(0)
        )
        canvas.paint(torch.minimum(rims, between), color)
    elif accessory == "cheeks":
        canvas.paint(ellipse(u.abs() - 0.52, v + 0.14, 0.17, 0.13), color)


def _shade(canvas: _Canvas, p: dict[str, Tensor]) -> Tensor:
    """Light falls from (light_x, light_y) in the body's screen frame, times its strength."""
    cos, sin = torch.cos(p["tilt"]), torch.sin(p["tilt"])
    across = cos * canvas.u_TKK - sin * canvas.v_TKK
    upward = sin * canvas.u_TKK + cos * canvas.v_TKK
    facing = (across * p["light_x"] + upward * p["light_y"]).clamp(-1.2, 1.2)
    canvas.rgba_T4KK[:, :3] *= (p["light"] * (1.0 + 0.16 * facing))[:, None]
    return canvas.rgba_T4KK
