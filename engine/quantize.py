"""Weight-only int8 and fp8: the DiT's large matrices at half of bf16, computed with in bf16.

torchao does it, one matrix after the other while they are loaded, with one scale per row. What is
small or sensitive stays as it is: norms, biases, modulation, embeddings, head. Optional: `[quant]`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from engine.errors import BackendError

# int8 or fp8 in place of bf16, and the scales.
LARGE = re.compile(r"(vace_|subject_)?blocks\.\d+\..+\.weight")
CONFIGS = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def is_large(name: str, weight: Tensor) -> bool:
    """Whether a parameter of a DiT is a matrix of one of its blocks."""
    return weight.ndim == 2 and LARGE.fullmatch(name) is not None


def quantizer(kind: str) -> Callable[[str, Tensor], Tensor]:
    """(name, weight) -> the weight, rounded to "int8" or "fp8" if it is a large matrix of a DiT.

    Raises:
        BackendError: torchao is not installed, or too old.
    """
    library = _torchao(kind)
    config = getattr(library, CONFIGS[kind])()

    def shrink(name: str, weight: Tensor) -> Tensor:
        # torchao 0.18 makes NaN of a row of zeros in fp8.
        if not is_large(name, weight) or not bool(weight.any(dim=1).all()):
            return weight
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        library.quantize_(layer, config)
        return layer.weight.detach()

    return shrink


def _torchao(kind: str) -> Any:
    try:
        library = importlib.import_module("torchao.quantization")
        getattr(library, CONFIGS[kind])
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        raise BackendError(
            f"weights={kind} needs torchao 0.18 ({error}): pip install -e '.[quant]'"
        ) from error
    return library


def stored_bytes(weight: Tensor) -> int:
    """Of memory that a parameter takes, quantized or not."""
    parts = getattr(weight, "tensor_data_names", ())
    return sum(getattr(weight, part).nbytes for part in parts) if parts else weight.nbytes
