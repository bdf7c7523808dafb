"""Presets: frozen, small, and consistent between their parts."""

import subprocess
import sys
from dataclasses import FrozenInstanceError, fields

import pytest

from engine.presets import MINIATURE, PRESETS, WAN_1_3B, Preset

NUMBERS = ("dit", "vae", "text", "vlm", "limits", "defaults")


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS.keys())
def test_parts_fit_together(preset: Preset):
    dit, limits, defaults = preset.dit, preset.limits, preset.defaults
    assert dit.text_dim == preset.text.d_model and dit.text_len == preset.text.text_len
    assert dit.vlm_dim == preset.vlm.hidden_size and dit.latent_dim == preset.vae.z_dim
    assert dit.max_subjects == limits.max_subjects and dit.subject_layers <= dit.num_layers
    assert dit.subject_dim % (dit.dim // dit.num_heads) == 0
    # A frame must be whole patches of whole latent cells.
    assert limits.size_multiple % (preset.vae.spatial_factor * dit.patch[1]) == 0
    assert defaults.width % limits.size_multiple == defaults.height % limits.size_multiple == 0
    assert preset.vae.temporal_factor == 4 and defaults.num_frames % 4 == 1
    assert 2 * sum(preset.vlm.mrope_section) == preset.vlm.hidden_size // preset.vlm.num_heads


@pytest.mark.parametrize("part", NUMBERS)
def test_frozen_and_small(part: str):
    config = getattr(MINIATURE, part)
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(config)[0].name, 1)
    assert sum(field.type in (int, float) for field in fields(config)) <= 16


def test_light_modules_do_not_load_torch():
    code = "import engine.spec, engine.presets, engine.errors, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_geometry_of_a_request():
    assert WAN_1_3B.latent_shape(832, 480, 81) == (16, 21, 60, 104)
    assert MINIATURE.latent_shape(96, 64, 17) == (16, 5, 16, 24)
    assert WAN_1_3B.reference_size(832, 480) == (832, 480)
    assert MINIATURE.reference_size(96, 48) == (64, 64)
