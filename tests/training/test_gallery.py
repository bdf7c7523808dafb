"""The pictures that the instruments learn from: twins side by side, splits apart, deterministic."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from training.gallery import REFERENCES, VIEWS, Gallery, build, full_boxes, load_or_build
from training.world.identity import FACTOR_NAMES, Identity, is_held_out
from training.world.scene import sample_scene


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    return build(12, 3, quiet=True)


def test_pairs_are_near_twins_and_everybody_is_different(gallery: Gallery) -> None:
    rows = gallery.factors_IF.tolist()
    assert len({tuple(row) for row in rows}) == len(rows)
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        differ = {n for n, x, y in zip(FACTOR_NAMES, a, b, strict=True) if x != y}
        assert 1 <= len({n.removesuffix("_color") for n in differ}) <= 1


@pytest.mark.parametrize("held_out", [False, True])
def test_splits_do_not_mix(held_out: bool) -> None:
    gallery = build(4, 0, held_out=held_out, quiet=True)
    for row in gallery.factors_IF.tolist():
        assert is_held_out(Identity(*row)) == held_out


def test_shapes(gallery: Gallery) -> None:
    assert gallery.references_IRHWC.shape == (12, REFERENCES, 64, 64, 3)
    assert gallery.views_IVHWC.shape == (12, VIEWS, 56, 56, 3)
    scenes = len(gallery.frames_MTHWC)
    assert gallery.boxes_MTKS.shape[:3] == gallery.visibility_MTK.shape == (scenes, 3, 4)
    assert gallery.visibility_MTK.amax() <= 1


def test_same_seed_same_pictures(gallery: Gallery) -> None:
    again = build(12, 3, quiet=True)
    for field in fields(Gallery):
        assert torch.equal(getattr(gallery, field.name), getattr(again, field.name)), field.name


def test_full_boxes_clip_to_the_scene_s_boxes() -> None:
    scene = sample_scene(np.random.default_rng(5), 4)
    clipped = np.clip(full_boxes(scene, 6), 0, [96, 64, 96, 64])
    assert np.allclose(clipped, scene.boxes(6, 64, 96), atol=1e-4)


def test_kept_gallery_is_read_back_and_another_size_refused(tmp_path: Path) -> None:
    first = load_or_build(tmp_path / "g.safetensors", 2, 0)
    assert torch.equal(first.views_IVHWC, build(2, 0, quiet=True).views_IVHWC)
    with pytest.raises(ValueError, match="holds 2 identities"):
        load_or_build(tmp_path / "g.safetensors", 4, 0)
