"""Published weights at full size, on meta tensors: every key and every shape is what we load."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.conversion_mapping import get_model_conversion_mapping

from engine import upstream
from engine.checkpoint import check_names
from engine.convert import with_statistics
from engine.dit import WanDiT
from engine.errors import CheckpointError
from engine.presets import (
    PHANTOM_1_3B,
    PHANTOM_14B,
    PRESETS,
    VACE_1_3B,
    VACE_14B,
    WAN_1_3B,
    WAN_14B,
    DiTConfig,
    Preset,
)
from engine.text import build_text_model
from engine.vace import build_dit
from engine.vae import build_vae
from engine.vlm import SPECIALS, build_vlm
from tests.engine import upstream_tables as tables

Tensors = dict[str, Tensor]
SMALL, LARGE = (1536, 8960, 30), (5120, 13824, 40)


def plain(preset: Preset) -> DiTConfig:
    """Without what the published files have not: the identity stream."""
    return replace(preset.dit, subject_layers=0, use_vlm=False)


@dataclass(frozen=True)
class Published:
    """A file as it is published: its table, the number of its keys, what ours is, how its names
    become ours."""

    table: tables.Table
    num: int
    own: Callable[[], Mapping[str, Tensor]]
    renamed: Callable[[Tensors, Mapping[str, Tensor]], Tensors]


def dit(preset: Preset, table: tables.Table, num: int) -> Published:
    return Published(
        table, num, lambda: build_dit(plain(preset)).state_dict(), upstream.original_names
    )


def _vae(tensors: Tensors, own: Mapping[str, Tensor]) -> Tensors:
    named = with_statistics(upstream.vae_names(tensors), WAN_1_3B)
    return {name: x for name, x in named.items() if not name.startswith("latents_")}


def _build_qwen() -> Qwen2_5_VLForConditionalGeneration:
    return build_vlm(WAN_1_3B.vlm, {name: number for number, name in enumerate(SPECIALS)})


def _qwen() -> Mapping[str, Tensor]:
    return dict(_build_qwen().named_parameters())


PUBLISHED = {
    "wan-1.3b": dit(WAN_1_3B, tables.wan(*SMALL), 825),
    "wan-14b": dit(WAN_14B, tables.wan(*LARGE), 1095),
    "phantom-1.3b": dit(PHANTOM_1_3B, tables.wan(*SMALL), 825),
    "phantom-14b": dit(PHANTOM_14B, tables.wan(*LARGE), 1095),
    "vace-1.3b": dit(VACE_1_3B, tables.vace(*SMALL, every=2), 825 + 15 * 29 + 4),
    "vace-14b": dit(VACE_14B, tables.vace(*LARGE, every=5), 1095 + 8 * 29 + 4),
    "vae": Published(tables.wan_vae(), 194, lambda: build_vae(WAN_1_3B.vae).state_dict(), _vae),
    "umt5-xxl": Published(
        tables.umt5(256384, 4096, 10240, 24, heads=64, buckets=32),
        242,
        lambda: dict(build_text_model(WAN_1_3B.text).named_parameters()),
        lambda tensors, own: upstream.text_names(tensors),
    ),
    "qwen2.5-vl-7b": Published(
        tables.qwen_2_5_vl_7b(), 729, _qwen, lambda tensors, own: upstream.vlm_names(tensors)
    ),
}


@pytest.fixture(params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Published:
    return PUBLISHED[request.param]


def on_meta(table: tables.Table) -> Tensors:
    return {name: torch.empty(shape, device="meta") for name, shape in table.items()}


def shapes(tensors: Mapping[str, Tensor]) -> tables.Table:
    return {name: tuple(x.shape) for name, x in tensors.items()}


def loads(tensors: Tensors, own: Mapping[str, Tensor], published: Published) -> None:
    """What `convert` and `Engine.load` ask of names and shapes. Raises CheckpointError."""
    check_names(own, published.renamed(tensors, own), "the file")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wan-1.3b", 1_418_996_800),
        ("wan-14b", 14_288_491_584),
        ("qwen2.5-vl-7b", 16_584_333_312 // 2),  # bytes in bf16, by the index of its shards
    ],
)
def test_tables_have_the_published_sizes(name: str, parameters: int) -> None:
    assert sum(math.prod(shape) for shape in PUBLISHED[name].table.values()) == parameters


def test_every_key_and_shape_is_ours_and_no_other(published: Published) -> None:
    assert len(published.table) == published.num
    with torch.device("meta"):
        own = published.own()
    loads(on_meta(published.table), own, published)
    faults_are_named(on_meta(published.table), own, published)


def faults_are_named(
    tensors: Tensors, own: Mapping[str, Tensor], published: Published
) -> None:
    """One tensor too few, one of another shape, one too many: the error names it as ours is."""
    *_, name = tensors
    renamed = published.renamed(tensors, own)
    ours = re.escape(next(key for key, x in renamed.items() if x is tensors[name]))
    few = {key: x for key, x in tensors.items() if key != name}
    wrong = tensors | {name: torch.empty(3, 1, device="meta")}
    more = tensors | {"nobody.knows": torch.empty(1, device="meta")}
    for spoilt, told in (
        (few, f"the file lacks {ours}$"),
        (wrong, rf"the file has another shape: {ours} is \(3, 1\), not \([\d, ]+\)$"),
        (more, "the file has the unknown nobody.knows$"),
    ):
        with pytest.raises(CheckpointError, match=told):
            loads(spoilt, own, published)


def diffusers_wan(config: DiTConfig) -> Tensors:
    """diffusers' class with the published numbers (its config.json), not with ours."""
    large = config.dim == 5120
    dim, ffn_dim, layers = LARGE if large else SMALL
    sizes = {
        "num_attention_heads": 40 if large else 12,
        "attention_head_dim": 128,
        "ffn_dim": ffn_dim,
        "num_layers": layers,
        "text_dim": 4096,
        "freq_dim": 256,
    }
    if not config.vace_layers:
        return dict(WanTransformer3DModel(**sizes).state_dict())
    beside = list(range(0, layers, 5 if large else 2))
    model = WanVACETransformer3DModel(**sizes, vace_layers=beside, vace_in_channels=96)
    return dict(model.state_dict())


@pytest.mark.parametrize("prefix", ["", upstream.PREFIX])
@pytest.mark.parametrize("preset", [WAN_1_3B, WAN_14B, VACE_1_3B, VACE_14B], ids=lambda p: p.name)
def test_diffusers_and_comfy_spell_the_same_weights(preset: Preset, prefix: str) -> None:
    published = PUBLISHED[preset.name]
    with torch.device("meta"):
        own, theirs = published.own(), diffusers_wan(preset.dit)
    assert len(theirs) == published.num
    loads(theirs, own, published)
    faults_are_named(theirs, own, published)
    # ComfyUI keeps the original names behind a prefix.
    named = {prefix + name: x for name, x in on_meta(published.table).items()}
    loads(named, own, published)
    faults_are_named(named, own, published)


def test_diffusers_vae_and_transformers_encoder_load_as_they_are() -> None:
    with torch.device("meta"):
        vae = PUBLISHED["vae"]
        loads(dict(AutoencoderKLWan().state_dict()), vae.own(), vae)
        text = PUBLISHED["umt5-xxl"]
        own = text.own()
    # transformers' files may hold the tied embedding twice.
    loads({**own, "encoder.embed_tokens.weight": own["shared.weight"]}, own, text)


def test_our_stream_is_all_that_the_published_files_lack() -> None:
    for preset in (WAN_1_3B, WAN_14B):
        with torch.device("meta"):
            own = set(build_dit(preset.dit).state_dict())
        more = own - set(PUBLISHED[preset.name].table)
        assert more and all(name.startswith(upstream.STREAM_PARAMETERS) for name in more)
        assert own >= set(PUBLISHED[preset.name].table)


@pytest.mark.parametrize("preset", [WAN_1_3B, WAN_14B, VACE_1_3B, VACE_14B], ids=lambda p: p.name)
def test_we_undo_what_diffusers_converter_does(preset: Preset) -> None:
    """Tensor for tensor: shapes alone would not see two of one shape exchanged."""
    original = on_meta(PUBLISHED[preset.name].table)
    with torch.device("meta"):
        theirs = diffusers_wan(preset.dit)
    renamed = convert_wan_transformer_to_diffusers(dict(original))
    assert shapes(renamed) == shapes(theirs)
    back = upstream.original_names(renamed, original)
    assert back.keys() == original.keys()
    assert all(back[name] is x for name, x in original.items())


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("preset", [WAN_1_3B, WAN_14B], ids=lambda p: p.name)
def test_published_weights_load_strictly_beside_our_stream(preset: Preset, layout: str) -> None:
    with torch.device("meta"):
        ours, theirs = WanDiT(preset.dit), diffusers_wan(preset.dit)
    held = theirs if layout == "diffusers" else on_meta(PUBLISHED[preset.name].table)
    upstream.load_base(ours, held)
    *_, last = held
    with pytest.raises(CheckpointError, match="lacks"):
        upstream.load_base(ours, {name: x for name, x in held.items() if name != last})


def test_transformers_encoder_has_the_same_shapes() -> None:
    config = UMT5Config(
        vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64
    )
    with torch.device("meta"):
        theirs = dict(UMT5EncoderModel(config).named_parameters())
    assert shapes(theirs) == shapes(upstream.text_names(on_meta(PUBLISHED["umt5-xxl"].table)))


def test_transformers_reads_qwens_published_names_as_we_do() -> None:
    """Its class, built from the published config.json, and its own rules for older names."""
    text = {
        "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "in_channels": 3, "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    held = on_meta(PUBLISHED["qwen2.5-vl-7b"].table)
    renamed = held
    for rule in get_model_conversion_mapping(model, add_legacy=False):
        renamed = {rule.rename_source_key(name)[0]: x for name, x in renamed.items()}
    assert shapes(renamed) == shapes(dict(model.named_parameters()))
    ours = upstream.vlm_names(held)
    assert ours.keys() == renamed.keys() - {"lm_head.weight"}
    assert all(renamed[name] is x for name, x in ours.items())


def test_numbers_that_no_shape_shows_are_the_published_ones() -> None:
    heads = {name: PRESETS[name].dit.num_heads for name in PUBLISHED if name in PRESETS}
    assert heads == {name: 40 if name.endswith("14b") else 12 for name in heads}
    with torch.device("meta"):
        qwen = _build_qwen().config
        umt5 = build_text_model(WAN_1_3B.text).config
    text, vision = qwen.text_config, qwen.vision_config
    assert (text.num_attention_heads, text.num_key_value_heads) == (28, 4)
    assert text.rms_norm_eps == 1e-6 and text.hidden_act == "silu" and not text.use_sliding_window
    assert text.rope_parameters["rope_theta"] == 1e6
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert (vision.num_heads, vision.window_size, vision.hidden_act) == (16, 112, "silu")
    assert vision.fullatt_block_indexes == [7, 15, 23, 31] and vision.spatial_merge_size == 2
    assert umt5.layer_norm_epsilon == 1e-6 and umt5.feed_forward_proj == "gated-gelu"
    assert umt5.relative_attention_max_distance == 128
