"""Encodings: content keys, letterbox, stacking, and a cache whose hits are its misses."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from engine.encodings import Encodings, encode, key, letterbox, stack
from engine.errors import SpecError
from engine.spec import PAD_GREY
from tests.engine.conftest import TOY_PRESET, picture, random_encoders

TEXT, SPANS = "anna and bob, anna", (((0, 4), (14, 18)), ((9, 12),))
CAST = [picture("anna"), picture("bob", (20, 40, 220))]


@pytest.fixture(scope="module")
def encoders():
    return random_encoders()


def same(one: Encodings, two: Encodings) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(two, f.name)) for f in fields(one))


def test_shapes_and_repeatability(encoders):
    got = encode(TEXT, SPANS, CAST, encoders, (64, 64))
    assert got.text_TM.shape == (24, 32) and got.tags_SM.shape == (2, 32)
    assert got.refs_SCHW.shape == (2, 16, 16, 16)
    assert got.vlm_VM.shape[0] > 2 * 16 and got.vlm_VM.shape[1] == 32
    assert same(got, encode(TEXT, SPANS, CAST, encoders, (64, 64)))


def test_a_reference_is_encoded_alone(encoders):
    """Whoever stands beside it: its latents are the same bits."""
    both = encode(TEXT, SPANS, CAST, encoders, (64, 64))
    alone = encode("anna", (((0, 4),),), CAST[:1], encoders, (64, 64))
    assert torch.equal(both.refs_SCHW[0], alone.refs_SCHW[0])


def test_the_tag_follows_the_subjects_own_words(encoders):
    got = encode(TEXT, SPANS, CAST, encoders, (64, 64))
    swapped = encode(TEXT, SPANS[::-1], CAST, encoders, (64, 64))
    assert torch.equal(got.tags_SM, swapped.tags_SM.flip(0))
    assert not torch.equal(got.tags_SM[0], got.tags_SM[1])


def test_without_subjects_or_vlm(encoders):
    empty = encode("a meadow", (), (), encoders, (64, 64))
    assert empty.refs_SCHW.shape == (0, 16, 16, 16) and len(empty.vlm_VM) == 0
    assert stack([empty]).subjects() is None
    blind = encode(TEXT, SPANS, CAST, replace(encoders, vlm=None), (64, 64))
    assert stack([blind]).subjects().vlm_BVM is None


def test_a_name_beyond_the_text_encoders_reach_is_told(encoders):
    text = "x" * TOY_PRESET.text.text_len + " anna"
    with pytest.raises(SpecError, match="@anna") as caught:
        encode(text, (((25, 29),),), CAST[:1], encoders, (64, 64))
    assert caught.value.field == "prompt"


def test_stack_pads_and_masks(encoders):
    two = encode(TEXT, SPANS, CAST, encoders, (64, 64))
    one = encode("anna", (((0, 4),),), CAST[:1], encoders, (64, 64))
    none = encode("a meadow", (), (), encoders, (64, 64))
    batch = stack([two, one, none], num_subjects=4)
    assert batch.subject_mask_BS.tolist() == [
        [True, True, False, False],
        [True, False, False, False],
        [False] * 4,
    ]
    assert batch.vlm_mask_BV.sum(1).tolist() == [len(two.vlm_VM), len(one.vlm_VM), 0]
    assert torch.equal(batch.refs_BSCHW[1, 0], one.refs_SCHW[0])
    assert batch.refs_BSCHW[1, 1:].abs().max() == 0
    alone = stack([two]).subjects()
    assert alone.subject_mask_BS is None and alone.vlm_mask_BV is None


def test_the_key_counts_everything_that_is_read():
    base = {"weights": "w", "text": TEXT, "spans": SPANS, "references": CAST, "size": (64, 64)}
    changes = [
        {"weights": "v"},
        {"text": TEXT + "."},
        {"spans": SPANS[::-1]},
        {"references": CAST[::-1]},
        {"references": [CAST[0], picture("bob", (20, 40, 221))]},
        {"references": [CAST[0], replace(CAST[1], name="rob")]},
        {"references": CAST[:1], "spans": SPANS[:1]},
        {"size": (64, 32)},
    ]
    keys = {key(**base)} | {key(**{**base, **change}) for change in changes}
    assert len(keys) == 1 + len(changes)
    assert key(**base) == key(**{**base, "references": list(CAST)})


@pytest.mark.parametrize("size", [(10, 40), (40, 10), (64, 64), (300, 200), (1, 1)])
def test_letterbox_keeps_the_whole_picture_in_proportion(size):
    image = Image.new("RGB", size, (0, 120, 0))
    boxed = np.array(letterbox(image, 64, 64))
    assert boxed.shape == (64, 64, 3)
    inside = (boxed[..., 0] < PAD_GREY // 2).nonzero()
    height, width = (np.ptp(axis) + 1 for axis in inside)
    assert max(width, height) == 64
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)
    corners = boxed[[0, -1], [0, -1]]
    if size[0] != size[1]:
        assert (corners == PAD_GREY).all()
