"""The small encoders of the training tests, for studies that train."""

from tests.training.conftest import encoder_folder, small_preset

__all__ = ["encoder_folder", "small_preset"]
