"""Scorers of photographs with tiny random weights: shapes, ranges, and what is said when absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from engine.encodings import Encoded, Encodings
from engine.likeness import CropJudge, load_judge
from engine.presets import MINIATURE
from engine.spec import Reference, Spec
from engine.vlm import VLM, build_vlm, special_ids
from training.policy import Task
from training.rewards.composite import Composite
from training.rewards.door import TOTAL, RewardError
from training.rewards.photo import (
    MARKS,
    ArcFace,
    Clip,
    Photo,
    Pixels,
    aesthetic_head,
    mark,
)
from training.tokenizers import build_vlm_tokenizer, grammar_words
from training.world.clip import sample_clip

MODEL = Path("models/miniature")
NOTHING = Encodings(*(torch.zeros(0, 0) for _ in range(4)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """A CLIP folder with random weights, read as a user's would be."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=24)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained(folder)
    shapes = {"0": (16, 24), "2": (1, 16)}  # LAION's number their dropouts too
    head = {f"layers.{n}.weight": torch.randn(*s) for n, s in shapes.items()}
    head |= {f"layers.{n}.bias": torch.full(s[:1], 5.0 / 2) for n, s in shapes.items()}
    save_file(head, folder / "aesthetic.safetensors")
    return Clip.load(folder)


class Drawn:
    """Faces of drawn characters: the miniature's own detector and encoder."""

    def __init__(self) -> None:
        judge = load_judge(MODEL)
        assert isinstance(judge, CropJudge)
        self.judge = judge

    def embeddings(self, picture: Pixels) -> Tensor:
        seen = self.judge.see(picture[None])
        return torch.from_numpy(seen.embedding_TDE[0][seen.real_TD[0]])


def test_clip_embeds_pictures_of_any_size_and_marks_them(clip: Clip) -> None:
    pictures = [np.full((h, w, 3), v, np.uint8) for h, w, v in ((20, 50, 0), (64, 64, 255))]
    embedded = clip.embeddings(pictures)
    assert embedded.shape == (2, 24) and not torch.allclose(embedded[0], embedded[1])
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))
    marks = clip.aesthetics(embedded)
    assert marks.dtype == torch.float64 and bool(((marks >= 0) & (marks <= 1)).all())


def test_the_head_is_the_product_of_its_layers_in_order(tmp_path: Path) -> None:
    first, second = torch.randn(4, 6), torch.randn(1, 4)
    tensors = {"layers.0.weight": first, "layers.2.weight": second}
    tensors |= {"layers.0.bias": torch.randn(4), "layers.2.bias": torch.randn(1)}
    save_file(tensors, tmp_path / "head.safetensors")
    x = torch.randn(3, 6)
    want = (x @ first.T + tensors["layers.0.bias"]) @ second.T + tensors["layers.2.bias"]
    torch.testing.assert_close(aesthetic_head(tmp_path / "head.safetensors")(x), want)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RewardError, match="config.json is missing"):
        Clip.load(tmp_path)
    if importlib.util.find_spec("insightface") is None:
        with pytest.raises(RewardError, match=r"pip install -e \"\.\[reward\]\""):
            ArcFace(tmp_path)


def test_a_composite_of_photographs(clip: Clip) -> None:
    """The true clip's faces are worth more than another cast's; whose pictures have no face count
    by the subject score, and one of two does not take the other with it."""
    finder, composite = Drawn(), Composite(beta=0.0)
    with pytest.raises(RewardError, match="naturalness"):
        Photo(finder, clip)
    reward = Photo(finder, clip, None, composite)
    true, other = (sample_clip(seed, split="heldout", num_subjects=1) for seed in (0, 3))
    spec = Spec.of(MINIATURE, "@anna and @bob", ("anna", "bob"))
    anna, grey = Image.fromarray(true.frames[8]), Image.new("RGB", (96, 64), (235,) * 3)

    def task(*pictures: Image.Image) -> Task:
        cast = (Reference.from_image(n, p) for n, p in zip(spec.names, pictures, strict=True))
        return Task(spec, tuple(cast), Encoded(NOTHING, NOTHING))

    frames = torch.from_numpy(np.stack([true.frames, other.frames, true.frames, true.frames]))
    asked = [task(anna, anna), task(anna, anna), task(anna, grey), task(grey, grey)]
    found = reward(frames, asked)
    assert {"face_mean", "face_least", "subject", "aesthetics", TOTAL} <= set(found)
    assert all(x.shape == (4,) and bool(((x >= 0) & (x <= 1)).all()) for x in found.values())
    assert float(found["face_mean"][0]) > float(found["face_mean"][1]) + 0.4
    assert found["face_mean"][2] == found["face_mean"][0]
    assert found["face_mean"][3] == found["subject"][3]


def test_a_vlm_gives_its_expected_mark() -> None:
    """One that has digits; the shipped one, which has none, is refused."""
    frames = list(sample_clip(0, num_subjects=1).frames[::4])
    files = MODEL / "vlm.safetensors", MODEL / "vlm_tokenizer.json"
    with pytest.raises(RewardError, match="marks"):
        mark(VLM.from_files(*files, MINIATURE.vlm), frames, "anna waves")
    words = build_vlm_tokenizer(MINIATURE.vlm.vocab_size, (*grammar_words(50), *MARKS))
    torch.manual_seed(0)
    vlm = VLM(build_vlm(MINIATURE.vlm, special_ids(words)), words, MINIATURE.vlm)
    plain = mark(vlm, frames, "anna waves")
    assert 0 < plain < 1 and plain != mark(vlm, frames[::-1], "anna waves")
