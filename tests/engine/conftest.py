"""Small random models for the engine's tests: the shipped classes at toy sizes."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

from engine.dit import WanDiT
from engine.encodings import Encoders
from engine.folders import MANIFEST, Manifest, sha256
from engine.pipeline import Engine
from engine.presets import MINIATURE, DiTConfig, Preset, TextConfig
from engine.reader import CONTEXT
from engine.spec import Reference
from engine.stores import Store, open_store
from engine.stream import SubjectInputs
from engine.text import TextEncoder, build_text_model
from engine.upstream import diffusers_arguments, diffusers_name
from engine.vae import VAE, build_vae
from engine.vlm import SPECIALS as VLM_SPECIALS
from engine.vlm import VLM, build_vlm, special_ids
from tests import s3

TOY = replace(
    MINIATURE.dit,
    dim=48,
    ffn_dim=64,
    freq_dim=32,
    text_dim=20,
    text_len=10,
    num_heads=2,
    num_layers=3,
    vlm_dim=12,
    subject_layers=2,
    subject_dim=24,
    subject_ffn_dim=40,
)


def random_dit(config: DiTConfig = TOY, seed: int = 0) -> WanDiT:
    """A DiT whose every weight is random: nothing is hidden by a zero initialisation."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = WanDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


class Spots(nn.Module):
    """A locator that finds somebody at these cells (x, y) of every frame, whatever it is shown: in
    boxes whose crops are 8 x 8 cells, centred on the cell's upper left corner."""

    def __init__(self, places: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.places = places

    def forward(self, latents_NCHW: torch.Tensor) -> torch.Tensor:
        maps = torch.zeros(len(latents_NCHW), 5, *latents_NCHW.shape[-2:])
        maps[:, 0], maps[:, 3:] = -9.0, math.log(8 / CONTEXT)
        for x, y in self.places:
            maps[:, 0, y, x] = 9.0
            maps[:, 1:3, y, x] = -0.5
        return maps


def diffusers_twin(ours: WanDiT) -> WanTransformer3DModel:
    """diffusers' class with the weights of a plain Wan of ours."""
    theirs = WanTransformer3DModel(**diffusers_arguments(ours.config)).eval()
    theirs.load_state_dict({diffusers_name(k): v for k, v in ours.state_dict().items()})
    return theirs


def random_inputs(batch: int = 1, num_subjects: int = 3, seed: int = 1) -> dict[str, object]:
    """x, t, text and the subjects of a request for `random_dit`, all real (no masks)."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": randn(batch, 16, 3, 4, 6),
        "t": torch.linspace(0.9, 0.2, batch, dtype=torch.float64),
        "text": randn(batch, 10, 20),
        "subjects": SubjectInputs(
            refs_BSCHW=randn(batch, num_subjects, 16, 4, 4),
            tags_BSM=randn(batch, num_subjects, 20),
            vlm_BVM=randn(batch, 5, 12),
        ),
    }


@pytest.fixture(autouse=True)
def _no_grad():  # noqa: ANN202
    with torch.no_grad():
        yield


# A whole engine: every model of the stack with random weights.

SPECIALS = ["<pad>", "</s>", "<unk>"]
TOY_TEXT_LEN = 24
TOY_PRESET = replace(
    MINIATURE,
    dit=replace(TOY, text_dim=32, text_len=TOY_TEXT_LEN, vlm_dim=32),
    vae=replace(MINIATURE.vae, base_dim=8),
    text=TextConfig(
        vocab_size=300,
        d_model=32,
        num_layers=1,
        num_heads=2,
        d_kv=8,
        d_ff=32,
        text_len=TOY_TEXT_LEN,
    ),
    vlm=replace(
        MINIATURE.vlm,
        vocab_size=300,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        intermediate_size=32,
        vision_depth=1,
        vision_hidden_size=32,
        vision_num_heads=2,
        vision_intermediate_size=32,
        full_attention_blocks=(0,),
        mrope_section=(2, 3, 3),
    ),
    limits=replace(MINIATURE.limits, max_identity_scale=0.0),
    defaults=replace(
        MINIATURE.defaults, width=48, height=32, num_frames=5, steps=3, identity_scale=0.0
    ),
)


def byte_tokenizer(specials: list[str], end: str | None = None) -> Tokenizer:
    """One token a byte, after the special tokens; `end` closes every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in specials])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if end is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocab[end])]
        )
    return tokenizer


def random_encoders(preset: Preset = TOY_PRESET, seed: int = 0) -> Encoders:
    torch.manual_seed(seed)
    words = byte_tokenizer(list(VLM_SPECIALS))
    generator = torch.Generator().manual_seed(seed)
    return Encoders(
        text=TextEncoder(
            build_text_model(preset.text), byte_tokenizer(SPECIALS, end="</s>"), preset.text
        ),
        vae=VAE(
            build_vae(preset.vae),
            torch.randn(16, generator=generator),
            torch.rand(16, generator=generator) + 0.5,
            preset.vae,
        ),
        vlm=VLM(build_vlm(preset.vlm, special_ids(words)), words, preset.vlm),
    )


def random_engine(seed: int = 0, **options: object) -> Engine:
    """The whole stack with random weights; the DiT's speak loudly."""
    dit = random_dit(TOY_PRESET.dit, seed).requires_grad_(False)
    return Engine(dit, random_encoders(seed=seed), TOY_PRESET, f"random-{seed}", **options)


def picture(name: str, colour: tuple[int, int, int] = (200, 30, 30), size: int = 40) -> Reference:
    """A disc on white."""
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).ellipse((4, 4, size - 5, size - 10), fill=colour)
    return Reference.from_image(name, image)


@pytest.fixture(scope="session")
def engine() -> Engine:
    return random_engine()


def alter(folder: Path, name: str, change: dict[str, torch.Tensor | None]) -> None:
    """Other tensors in a model folder, under an honest manifest; None takes one away."""
    tensors = load_file(folder / name) | change
    save_file({n: x for n, x in tensors.items() if x is not None}, folder / name)
    manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
    manifest = replace(manifest, files={n: sha256(folder / n) for n in manifest.files})
    (folder / MANIFEST).write_bytes(manifest.to_bytes())


@pytest.fixture(scope="session")
def loud_model(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose transformer speaks: no weight of it is zero."""
    folder = Path(shutil.copytree(random_model, tmp_path_factory.mktemp("loud") / "model"))
    generator = torch.Generator().manual_seed(0)
    name = "dit.safetensors"
    alter(folder, name, {
        key: (value + torch.randn(value.shape, generator=generator) * 0.05).bfloat16()
        for key, value in load_file(folder / name).items()
    })  # fmt: skip
    return folder


# Stores of models: a folder, and a bucket of a real server.


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The endpoint of an S3 server that heeds conditions; the environment leads to it."""
    with s3.moto() as endpoint:
        yield endpoint


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    request.getfixturevalue("moto")
    return open_store(f"s3://{s3.new_bucket()}/some/root")
