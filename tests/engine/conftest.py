"""Small random models for the engine's tests: the shipped classes at toy sizes."""

from dataclasses import replace

import pytest
import torch

from engine.dit import SubjectInputs, WanDiT
from engine.presets import MINIATURE, DiTConfig

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
    model = WanDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


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
