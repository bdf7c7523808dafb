"""Sizes of the models, as frozen numbers. Importable without torch.

`WAN_1_3B` and `WAN_14B` are the published Wan 2.1 text-to-video models with the identity stream of
ID-Crafter beside them; `MINIATURE` is the same stack at a size that a laptop trains. A shipped
model folder names its preset and may override single numbers (see `engine.folders`).

Sources: Wan2.1 `wan/configs/wan_t2v_1_3B.py`, `wan_t2v_14B.py`, `shared_config.py`; ID-Crafter
section A.1 (identity stream in the first 20 layers, Qwen2.5-VL-7B); the config.json of
Qwen/Qwen2.5-VL-7B-Instruct.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DiTConfig:
    """The diffusion transformer; fields from `intra` to `layout` switch parts off for ablations.

    `subject_layers` = 0 is plain Wan. `subject_dim` is the inner width of the stream's own
    attentions (stages 1 and 2); `subject_ffn_dim` = 0 leaves the stream without an MLP.
    `stream_time` lets the stream see the time, which costs the whole stream at every step.
    """

    latent_dim: int
    patch: tuple[int, int, int]
    dim: int
    ffn_dim: int
    freq_dim: int
    text_dim: int
    text_len: int
    num_heads: int
    num_layers: int
    vlm_dim: int
    subject_layers: int
    subject_dim: int
    subject_ffn_dim: int
    max_subjects: int
    intra: bool = True
    inter: str = "gated"  # "gated" (ID-Crafter S.10), "joint" (ID-Composer), "off"
    cross_modal: bool = True
    use_vlm: bool = True
    tag: bool = True
    place: bool = True
    layout: str = "stream"  # "stream", or "concat": reference tokens join the video sequence
    stream_time: bool = False
    vace_layers: tuple[int, ...] = ()  # blocks that VACE's context blocks stand beside, from 0 on
    vace_in_dim: int = 0  # channels of its context


@dataclass(frozen=True)
class VAEConfig:
    """Arguments of diffusers' `AutoencoderKLWan`, under its own names (its spelling too)."""

    base_dim: int
    z_dim: int
    dim_mult: tuple[int, ...]
    num_res_blocks: int
    temperal_downsample: tuple[bool, ...]
    is_residual: bool

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent cell along height and width."""
        return int(2 ** (len(self.dim_mult) - 1))

    @property
    def temporal_factor(self) -> int:
        """Frames per latent frame, after the first."""
        return int(2 ** sum(self.temperal_downsample))


@dataclass(frozen=True)
class TextConfig:
    """Arguments of transformers' `UMT5EncoderModel`; `text_len` in tokens."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_kv: int
    d_ff: int
    text_len: int


@dataclass(frozen=True)
class VLMConfig:
    """Arguments of transformers' `Qwen2_5_VLForConditionalGeneration`; `vlm_len` in tokens."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    vision_depth: int
    vision_hidden_size: int
    vision_num_heads: int
    vision_intermediate_size: int
    patch_size: int
    window_size: int
    full_attention_blocks: tuple[int, ...]
    mrope_section: tuple[int, int, int]
    vlm_len: int
    merge_size: int = 2
    norm_eps: float = 1e-5  # of the language half


@dataclass(frozen=True)
class ReaderConfig:
    """Who is read in latents, see `engine.reader`. groups: values of each group of logits."""

    groups: tuple[int, ...]
    widths: tuple[int, int]
    squeezed: int
    locator_widths: tuple[int, int]


@dataclass(frozen=True)
class Limits:
    """What may be asked of a model. Sides in px, `size_multiple` the grid they lie on."""

    size_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    min_frames: int
    max_frames: int
    max_subjects: int
    max_steps: int = 200
    max_guidance: float = 30.0
    max_identity_scale: float = 0.0  # more where a folder brings readers, `engine.reader`
    max_prompt_chars: int = 2000
    min_fps: int = 1
    max_fps: int = 60
    tiers: tuple[str, ...] = ("exact", "fast")  # see `engine.tiers`


@dataclass(frozen=True)
class Defaults:
    """What a request gets when it does not say. shift: the schedule's, see `engine.flow`.
    guidance, guidance_mode, identity_scale: see `engine.spec.Guidance`.
    """

    width: int
    height: int
    num_frames: int
    fps: int
    steps: int
    guidance: float
    shift: float
    solver: str
    guidance_mode: str = "single"
    identity_scale: float = 0.0


@dataclass(frozen=True)
class Preset:
    """One model family member: sizes of its parts, what may be asked, what is assumed.

    References are letter-boxed to `reference_width` x `reference_height` px; 0 means the size of
    the requested video. family: how the transformer is shown its subjects (`engine.families`).
    reader: see `engine.reader`. knee: tokens in a forward from which on more requests beside each
    other gain nothing (`engine.batching`).
    """

    name: str
    dit: DiTConfig
    vae: VAEConfig
    text: TextConfig
    vlm: VLMConfig
    limits: Limits
    defaults: Defaults
    reference_width: int
    reference_height: int
    family: str = "identity"
    reader: ReaderConfig | None = None
    knee: int = 8192  # by arithmetic, for Wan on a large card: docs/decisions.md

    def latent_shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of a video's latents; sides in px."""
        frames = (num_frames - 1) // self.vae.temporal_factor + 1
        side = self.vae.spatial_factor
        return self.vae.z_dim, frames, height // side, width // side

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the references, px, for a video of this size."""
        return self.reference_width or width, self.reference_height or height


MINIATURE = Preset(
    name="miniature",
    dit=DiTConfig(
        latent_dim=16,
        patch=(1, 2, 2),
        dim=192,
        ffn_dim=768,
        freq_dim=64,
        text_dim=128,
        text_len=64,
        num_heads=3,
        num_layers=6,
        vlm_dim=128,
        subject_layers=6,
        subject_dim=192,
        subject_ffn_dim=384,
        max_subjects=4,
    ),
    vae=VAEConfig(
        base_dim=32,
        z_dim=16,
        dim_mult=(1, 2, 2),
        num_res_blocks=1,
        temperal_downsample=(True, True),
        is_residual=True,
    ),
    text=TextConfig(
        vocab_size=768, d_model=128, num_layers=4, num_heads=4, d_kv=32, d_ff=256, text_len=64
    ),
    vlm=VLMConfig(
        vocab_size=768,
        hidden_size=128,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=384,
        vision_depth=4,
        vision_hidden_size=96,
        vision_num_heads=4,
        vision_intermediate_size=256,
        patch_size=8,
        window_size=64,
        full_attention_blocks=(1, 3),
        mrope_section=(4, 6, 6),
        vlm_len=192,
    ),
    limits=Limits(
        size_multiple=8,
        min_side=32,
        max_side=128,
        max_pixels=128 * 128,
        min_frames=5,
        max_frames=33,
        max_subjects=4,
        max_identity_scale=1.0,
    ),
    defaults=Defaults(
        width=96, height=64, num_frames=17,
        fps=8,
        steps=24,
        guidance=2.5,
        shift=1.0,
        solver="euler",
        identity_scale=0.3,
    ),
    reference_width=64,
    reference_height=64,
    # The groups are the ten factors of a character of `training.world`.
    reader=ReaderConfig((8, 12, 12, 7, 6, 5, 8, 12, 6, 12), (64, 128), 24, (32, 48)),
    knee=2560,  # measured on a CPU, docs/benchmarks.md
)

_WAN_VAE = VAEConfig(
    base_dim=96,
    z_dim=16,
    dim_mult=(1, 2, 4, 4),
    num_res_blocks=2,
    temperal_downsample=(False, True, True),
    is_residual=False,
)

_UMT5_XXL = TextConfig(
    vocab_size=256384,
    d_model=4096,
    num_layers=24,
    num_heads=64,
    d_kv=64,
    d_ff=10240,
    text_len=512,
)

_QWEN_2_5_VL_7B = VLMConfig(
    vocab_size=152064,
    hidden_size=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    intermediate_size=18944,
    vision_depth=32,
    vision_hidden_size=1280,
    vision_num_heads=16,
    vision_intermediate_size=3420,
    patch_size=14,
    window_size=112,
    full_attention_blocks=(7, 15, 23, 31),
    mrope_section=(16, 24, 24),
    vlm_len=4096,
    norm_eps=1e-6,
)

_WAN_DEFAULTS = Defaults(
    width=832,
    height=480,
    num_frames=81,
    fps=16,
    steps=50,
    guidance=2.5,
    shift=5.0,
    solver="unipc",
)

WAN_1_3B = Preset(
    name="wan-1.3b",
    dit=DiTConfig(
        latent_dim=16,
        patch=(1, 2, 2),
        dim=1536,
        ffn_dim=8960,
        freq_dim=256,
        text_dim=4096,
        text_len=512,
        num_heads=12,
        num_layers=30,
        vlm_dim=3584,
        subject_layers=20,
        subject_dim=1536,
        subject_ffn_dim=0,
        max_subjects=4,
    ),
    vae=_WAN_VAE,
    text=_UMT5_XXL,
    vlm=_QWEN_2_5_VL_7B,
    limits=Limits(
        size_multiple=16,
        min_side=256,
        max_side=832,
        max_pixels=832 * 480,
        min_frames=5,
        max_frames=121,
        max_subjects=4,
    ),
    defaults=_WAN_DEFAULTS,
    reference_width=0,
    reference_height=0,
)

WAN_14B = replace(
    WAN_1_3B,
    name="wan-14b",
    # Full-width stages 1 and 2 would add 6-7 B parameters here; a quarter of the width does not.
    dit=replace(
        WAN_1_3B.dit, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40, subject_dim=1280
    ),
    limits=replace(WAN_1_3B.limits, max_side=1280, max_pixels=1280 * 720),
)

# Phantom's weights have Wan's shapes; its subjects are latent frames behind the video's own.
PHANTOM_1_3B = replace(
    WAN_1_3B,
    name="phantom-1.3b",
    family="phantom",
    dit=replace(WAN_1_3B.dit, subject_layers=0, use_vlm=False),
    defaults=replace(_WAN_DEFAULTS, guidance_mode="dual"),
)

PHANTOM_14B = replace(
    WAN_14B,
    name="phantom-14b",
    family="phantom",
    dit=replace(WAN_14B.dit, subject_layers=0, use_vlm=False),
    # Trained on 121 frames at 24 a second (its README).
    defaults=replace(PHANTOM_1_3B.defaults, num_frames=121, fps=24),
)

# VACE: context blocks beside some of Wan's (wan/modules/vace_model.py, its two config.json).
_VACE_IN_DIM = 2 * _WAN_VAE.z_dim + _WAN_VAE.spatial_factor**2

VACE_1_3B = replace(
    WAN_1_3B,
    name="vace-1.3b",
    family="vace",
    dit=replace(
        PHANTOM_1_3B.dit, vace_layers=tuple(range(0, 30, 2)), vace_in_dim=_VACE_IN_DIM
    ),
    limits=replace(WAN_1_3B.limits, tiers=("exact",)),
    defaults=replace(_WAN_DEFAULTS, guidance=5.0, shift=16.0),
)

VACE_14B = replace(
    WAN_14B,
    name="vace-14b",
    family="vace",
    dit=replace(
        PHANTOM_14B.dit, vace_layers=tuple(range(0, 40, 5)), vace_in_dim=_VACE_IN_DIM
    ),
    limits=replace(WAN_14B.limits, tiers=("exact",)),
    defaults=VACE_1_3B.defaults,
)

_ALL = (MINIATURE, WAN_1_3B, WAN_14B, PHANTOM_1_3B, PHANTOM_14B, VACE_1_3B, VACE_14B)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
