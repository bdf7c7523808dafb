"""Every key of the published weights with its shape, as the upstream files define them.

Written from the sources that are named, not from our modules: this is what ours are held against.
"""

from __future__ import annotations

Table = dict[str, tuple[int, ...]]


def _linear(out_dim: int, in_dim: int, bias: bool = True) -> Table:
    return {".weight": (out_dim, in_dim)} | ({".bias": (out_dim,)} if bias else {})


def _conv(out_dim: int, in_dim: int, *kernel: int) -> Table:
    return {".weight": (out_dim, in_dim, *kernel), ".bias": (out_dim,)}


def _under(**parts: Table | tuple[int, ...]) -> Table:
    """Names joined; `__` in a keyword is a dot."""
    joined: Table = {}
    for name, part in parts.items():
        name = name.replace("__", ".")
        if isinstance(part, tuple):
            joined[name] = part
        else:
            joined |= {f"{name}{key}": shape for key, shape in part.items()}
    return joined


def _at(prefix: str, table: Table) -> Table:
    return {f"{prefix}.{key}": shape for key, shape in table.items()}


# --- Wan2.1 wan/modules/model.py, vace_model.py --------------------------------------------------


def _block(dim: int, ffn_dim: int) -> Table:
    table: Table = {"modulation": (1, 6, dim)}
    for attention in ("self_attn", "cross_attn"):
        for name in "qkvo":
            table |= _at(attention, _under(**{name: _linear(dim, dim)}))
        table |= {f"{attention}.norm_q.weight": (dim,), f"{attention}.norm_k.weight": (dim,)}
    table |= {"norm3.weight": (dim,), "norm3.bias": (dim,)}
    return table | _under(ffn__0=_linear(ffn_dim, dim), ffn__2=_linear(dim, ffn_dim))


def wan(dim: int, ffn_dim: int, num_layers: int) -> Table:
    """The text-to-video transformer."""
    table = _under(
        patch_embedding=_conv(dim, 16, 1, 2, 2),
        text_embedding__0=_linear(dim, 4096),
        text_embedding__2=_linear(dim, dim),
        time_embedding__0=_linear(dim, 256),
        time_embedding__2=_linear(dim, dim),
        time_projection__1=_linear(6 * dim, dim),
        head__head=_linear(16 * 4, dim),
        head__modulation=(1, 2, dim),
    )
    for number in range(num_layers):
        table |= _at(f"blocks.{number}", _block(dim, ffn_dim))
    return table


def vace(dim: int, ffn_dim: int, num_layers: int, every: int) -> Table:
    """VACE: a context block beside every so many blocks."""
    table = wan(dim, ffn_dim, num_layers) | _under(vace_patch_embedding=_conv(dim, 96, 1, 2, 2))
    for number in range(len(range(0, num_layers, every))):
        block = _block(dim, ffn_dim) | _under(after_proj=_linear(dim, dim))
        if number == 0:
            block |= _under(before_proj=_linear(dim, dim))
        table |= _at(f"vace_blocks.{number}", block)
    return table


# --- Wan2.1 wan/modules/t5.py --------------------------------------------------------------------


def umt5(vocab: int, dim: int, ffn_dim: int, num_layers: int, heads: int, buckets: int) -> Table:
    """The encoder; every layer has positions of its own."""
    table: Table = {"token_embedding.weight": (vocab, dim), "norm.weight": (dim,)}
    for number in range(num_layers):
        block = {"norm1.weight": (dim,), "norm2.weight": (dim,)}
        block |= {f"attn.{name}.weight": (dim, dim) for name in "qkvo"}
        block |= {
            "pos_embedding.embedding.weight": (buckets, heads),
            "ffn.gate.0.weight": (ffn_dim, dim),
            "ffn.fc1.weight": (ffn_dim, dim),
            "ffn.fc2.weight": (dim, ffn_dim),
        }
        table |= _at(f"blocks.{number}", block)
    return table


# --- Wan2.1 wan/modules/vae.py -------------------------------------------------------------------


def _residual(in_dim: int, out_dim: int) -> Table:
    table = _under(
        residual__0__gamma=(in_dim, 1, 1, 1),
        residual__2=_conv(out_dim, in_dim, 3, 3, 3),
        residual__3__gamma=(out_dim, 1, 1, 1),
        residual__6=_conv(out_dim, out_dim, 3, 3, 3),
    )
    return table | (_under(shortcut=_conv(out_dim, in_dim, 1, 1, 1)) if in_dim != out_dim else {})


def _middle(dim: int) -> Table:
    attention = _under(
        norm__gamma=(dim, 1, 1), to_qkv=_conv(3 * dim, dim, 1, 1), proj=_conv(dim, dim, 1, 1)
    )
    return (
        _at("middle.0", _residual(dim, dim))
        | _at("middle.1", attention)
        | _at("middle.2", _residual(dim, dim))
    )


def _vae_encoder(dim: int, z_dim: int) -> Table:
    table, number, last = _under(conv1=_conv(dim, 3, 3, 3, 3)), 0, dim
    for stage, times in enumerate((1, 2, 4, 4)):
        for _ in range(2):
            table |= _at(f"downsamples.{number}", _residual(last, times * dim))
            last, number = times * dim, number + 1
        if stage < 3:
            down = _under(resample__1=_conv(last, last, 3, 3))
            if stage > 0:  # in time too
                down |= _under(time_conv=_conv(last, last, 3, 1, 1))
            table |= _at(f"downsamples.{number}", down)
            number += 1
    head = _under(head__0__gamma=(last, 1, 1, 1), head__2=_conv(2 * z_dim, last, 3, 3, 3))
    return table | _middle(last) | head


def _vae_decoder(dim: int, z_dim: int) -> Table:
    last, number = 4 * dim, 0
    table = _under(conv1=_conv(last, z_dim, 3, 3, 3)) | _middle(last)
    for stage, times in enumerate((4, 4, 2, 1)):
        for _ in range(3):
            table |= _at(f"upsamples.{number}", _residual(last, times * dim))
            last, number = times * dim, number + 1
        if stage < 3:
            up = _under(resample__1=_conv(last // 2, last, 3, 3))
            if stage < 2:
                up |= _under(time_conv=_conv(2 * last, last, 3, 1, 1))
            table |= _at(f"upsamples.{number}", up)
            last, number = last // 2, number + 1
    return table | _under(head__0__gamma=(last, 1, 1, 1), head__2=_conv(3, last, 3, 3, 3))


def wan_vae(dim: int = 96, z_dim: int = 16) -> Table:
    """The causal VAE."""
    return (
        _at("encoder", _vae_encoder(dim, z_dim))
        | _at("decoder", _vae_decoder(dim, z_dim))
        | _under(conv1=_conv(2 * z_dim, 2 * z_dim, 1, 1, 1), conv2=_conv(z_dim, z_dim, 1, 1, 1))
    )


# --- Qwen/Qwen2.5-VL-7B-Instruct config.json; transformers 4 modeling_qwen2_5_vl.py --------------


def _qwen_layer(dim: int, kv_dim: int, ffn_dim: int) -> Table:
    return _under(
        self_attn__q_proj=_linear(dim, dim),
        self_attn__k_proj=_linear(kv_dim, dim),
        self_attn__v_proj=_linear(kv_dim, dim),
        self_attn__o_proj=_linear(dim, dim, bias=False),
        mlp__gate_proj=_linear(ffn_dim, dim, bias=False),
        mlp__up_proj=_linear(ffn_dim, dim, bias=False),
        mlp__down_proj=_linear(dim, ffn_dim, bias=False),
        input_layernorm__weight=(dim,),
        post_attention_layernorm__weight=(dim,),
    )


def _qwen_vision_block(dim: int, ffn_dim: int) -> Table:
    return _under(
        norm1__weight=(dim,),
        norm2__weight=(dim,),
        attn__qkv=_linear(3 * dim, dim),
        attn__proj=_linear(dim, dim),
        mlp__gate_proj=_linear(ffn_dim, dim),
        mlp__up_proj=_linear(ffn_dim, dim),
        mlp__down_proj=_linear(dim, ffn_dim),
    )


def qwen_2_5_vl_7b() -> Table:
    """The names of the published shards (transformers 5 renames them when it loads)."""
    vocab, dim, vision = 152064, 3584, 1280
    merged = 4 * vision
    table = _under(
        model__embed_tokens__weight=(vocab, dim),
        model__norm__weight=(dim,),
        lm_head__weight=(vocab, dim),
        visual__patch_embed__proj__weight=(vision, 3, 2, 14, 14),
        visual__merger__ln_q__weight=(vision,),
        visual__merger__mlp__0=_linear(merged, merged),
        visual__merger__mlp__2=_linear(dim, merged),
    )
    for number in range(28):
        table |= _at(f"model.layers.{number}", _qwen_layer(dim, 4 * 128, 18944))
    for number in range(32):
        table |= _at(f"visual.blocks.{number}", _qwen_vision_block(vision, 3420))
    return table
