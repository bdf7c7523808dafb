"""Names of published weights: Wan's and Phantom's transformer, Wan's VAE and its umT5.

`engine.dit` carries the original names (Wan-Video/Wan2.1; Phantom's files have the same). Files in
diffusers' layout are renamed; the table is that of diffusers
`loaders/single_file_utils.py convert_wan_transformer_to_diffusers`, read backwards. Beware: norm2
there is norm3 here.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from engine.checkpoint import load_strict
from engine.dit import STREAM_PARAMETERS, WanDiT
from engine.presets import DiTConfig

PREFIX = "model.diffusion_model."  # files that went through ComfyUI
# (original, diffusers): the first that occurs in a name is replaced.
_RENAMED = (
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    ("modulation", "scale_shift_table"),
    ("self_attn.o", "attn1.to_out.0"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("self_attn.norm", "attn1.norm"),
    ("cross_attn.norm", "attn2.norm"),
    ("self_attn.", "attn1.to_"),
    ("cross_attn.", "attn2.to_"),
    ("norm3", "norm2"),
    ("before_proj", "proj_in"),
    ("after_proj", "proj_out"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
)


def diffusers_name(name: str) -> str:
    """What diffusers' WanTransformer3DModel calls a parameter of the base."""
    for original, renamed in _RENAMED:
        if original in name:
            return name.replace(original, renamed)
    return name


def diffusers_arguments(config: DiTConfig) -> dict[str, int]:
    """What diffusers' WanTransformer3DModel (and VACE's) is built with for these sizes."""
    return {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
    }


def original_names(tensors: Mapping[str, Tensor], base: Iterable[str]) -> dict[str, Tensor]:
    """The tensors under the original names, from either layout; `base` are those names."""
    stripped = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    if "proj_out.weight" not in stripped:
        return stripped
    back = {diffusers_name(name): name for name in base}
    return {back.get(name, name): value for name, value in stripped.items()}


def load_base(dit: WanDiT, tensors: Mapping[str, Tensor], name: str = "the weights") -> None:
    """Loads published weights into the base, every one of them; the identity stream stays.

    Raises:
        CheckpointError: naming the keys that are missing, unknown or of another shape.
    """
    own = dit.state_dict()
    stream = {key: value for key, value in own.items() if key.startswith(STREAM_PARAMETERS)}
    base = own.keys() - stream.keys()
    load_strict(dit, {**stream, **original_names(tensors, base)}, name)


# umT5 as in Wan2.1 `wan/modules/t5.py` (models_t5_umt5-xxl-enc-bf16.pth) -> as in transformers.
_TEXT_BLOCK = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}
_TEXT_REST = {
    "token_embedding.weight": "shared.weight",
    "norm.weight": "encoder.final_layer_norm.weight",
}


def text_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """umT5's encoder under transformers' names, from Wan's layout or from transformers' own."""
    if "token_embedding.weight" not in tensors:
        # The embedding is tied: some files hold it twice.
        return {k: v for k, v in tensors.items() if k != "encoder.embed_tokens.weight"}
    return {_text_name(name): value for name, value in tensors.items()}


def _text_name(name: str) -> str:
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if block and block[2] in _TEXT_BLOCK:
        return f"encoder.block.{block[1]}.{_TEXT_BLOCK[block[2]]}"
    return _TEXT_REST.get(name, name)


def vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Wan's VAE under diffusers' names, from Wan's layout (Wan2.1_VAE.pth) or diffusers' own."""
    if "encoder.conv1.weight" not in tensors:
        return dict(tensors)
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    renamed: dict[str, Tensor] = convert_wan_vae_to_diffusers(dict(tensors))
    return renamed


def vlm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Qwen2.5-VL under the names of transformers 5, from those or from the published ones.

    The vocabulary's own projection is left out: hidden states are all that a transformer reads.
    """
    renamed = {}
    for name, value in tensors.items():
        if name.startswith("visual."):
            name = f"model.{name}"
        elif re.match(r"model\.(layers|embed_tokens|norm)\.", name):
            name = name.replace("model.", "model.language_model.", 1)
        if name != "lm_head.weight":
            renamed[name] = value
    return renamed
