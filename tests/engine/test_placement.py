"""A runtime on this machine: devices that there are, precisions that are meant."""

import numpy as np
import pytest
import torch

from engine.encodings import stack
from engine.errors import BackendError
from engine.pipeline import Engine
from engine.placement import exact, placed
from engine.runtime import STANDARD, Runtime
from engine.spec import Spec
from tests.engine.conftest import TOY, picture, random_dit, random_inputs

NO_CARD = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
CARD = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def cast(dit) -> None:  # noqa: ANN001
    """To bf16 as `Engine.load` does it."""
    dtype_of = placed(Runtime(device="cpu", dtype="bf16")).dtypes(dit)
    for name, parameter in dit.named_parameters():
        parameter.data = parameter.data.to(dtype_of(name))


def asked(engine, **given):  # noqa: ANN201
    names = ("anna", "bob")
    given = {"width": 48, "height": 32, "num_frames": 5, "steps": 2, "seed": 3} | given
    return Spec.of(engine.preset, "@anna meets @bob", names, **given), [
        picture("anna"), picture("bob", (20, 60, 200))
    ]  # fmt: skip


@NO_CARD
def test_auto_without_a_card_is_fp32_on_the_cpu():
    place = placed(STANDARD)
    assert (place.device, place.dtype) == (torch.device("cpu"), torch.float32)
    assert place.attention.backend == "native"
    told = place.told(STANDARD)
    assert told.startswith("device=cpu, dtype=fp32, ") and "attention=native" in told
    assert Runtime.parse(told.split(" (")[0]).dtype == "fp32"


@NO_CARD
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    with pytest.raises(BackendError, match=f"device={device} is not there; torch sees cpu"):
        placed(Runtime(device=device))


@NO_CARD
def test_a_kernel_that_cannot_be_had_is_refused_at_load(loud_model):
    with pytest.raises(BackendError, match="attention=sage cannot be used: it needs a CUDA"):
        Engine.load(loud_model, runtime=Runtime(attention="sage"))


def test_a_card_is_bf16_unless_asked_otherwise(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert placed(STANDARD)[:2] == (torch.device("cuda:0"), torch.bfloat16)
    assert placed(Runtime(device="cuda:1", dtype="fp32"))[:2] == (
        torch.device("cuda:1"), torch.float32
    )  # fmt: skip
    assert placed(Runtime(device="cpu")).dtype == torch.float32
    with pytest.raises(BackendError, match="torch sees cpu, cuda:0, cuda:1"):
        placed(Runtime(device="cuda:2"))


def test_bf16_spares_what_the_dit_computes_in_fp32():
    dit = random_dit(TOY)
    cast(dit)
    kept = {name for name, p in dit.named_parameters() if p.dtype == torch.float32}
    assert kept == set(exact(dit))
    assert {name.split(".")[0] for name in kept} == {
        "blocks", "subject_blocks", "head", "time_embedding", "time_projection", "vlm_projection"
    }  # fmt: skip
    assert "blocks.0.modulation" in kept and "blocks.0.norm3.weight" in kept
    assert dit.blocks[0].self_attn.norm_q.weight.dtype == torch.bfloat16
    assert dit.rope.turns.dtype == torch.float32


def test_the_time_is_embedded_to_the_same_bits_in_bf16():
    dit, t_B = random_dit(TOY), torch.tensor([0.3, 0.9], dtype=torch.float64)
    before = dit._time(t_B)
    cast(dit)
    assert all(map(torch.equal, before, dit._time(t_B)))


@pytest.mark.parametrize("num_subjects", [0, 1, 3])
def test_a_bf16_forward_is_near_the_exact_one(num_subjects):
    given = random_inputs(batch=2, num_subjects=max(num_subjects, 1))
    if not num_subjects:
        given["subjects"] = None
    dit = random_dit(TOY)
    wanted = dit(given["x"], given["t"], given["text"], given["subjects"])
    cast(dit)
    made = dit(given["x"], given["t"], given["text"], given["subjects"])
    assert made.dtype == torch.float32
    assert 0 < (made - wanted).abs().max() < 0.03 * wanted.abs().max()


def test_a_whole_engine_in_bf16(loud_model):
    """Encoders too; what they make stays fp32 on the CPU, under a key of its own."""
    exactly, engine = Engine.load(loud_model), Engine.load(
        loud_model, runtime=Runtime(dtype="bf16")
    )
    assert engine.encoders.text.model.dtype == engine.encoders.vlm.model.dtype == torch.bfloat16
    assert engine.encoders.vae.model.dtype == torch.float32
    assert (exactly.encoders.dtype, engine.encoders.dtype) == ("float32", "bfloat16")
    spec, cast_ = asked(engine)
    for made, wanted in zip(engine.encode(spec, cast_), exactly.encode(spec, cast_), strict=True):
        for name, value in made.tensors().items():
            assert value.dtype == torch.float32 and value.device.type == "cpu"
            other = wanted.tensors()[name]
            near = 0.05 * float(other.abs().max()) if other.numel() else 0.0
            torch.testing.assert_close(value, other, rtol=0, atol=near)
    assert engine.generate(spec, cast_).frames.std() > 0


@pytest.mark.parametrize("where", [pytest.param("cuda", marks=CARD)])
def test_a_card_makes_what_the_cpu_makes(loud_model, where):
    there, here = (
        Engine.load(loud_model, runtime=Runtime(device=device, dtype="fp32"))
        for device in (where, "cpu")
    )
    spec, cast_ = asked(here)
    assert there.device.type == where
    encoded = stack([there.encode(spec, cast_)[0]])
    assert encoded.text_BTM.device.type == "cpu"
    made, wanted = (engine.generate(spec, cast_).frames.astype(int) for engine in (there, here))
    assert np.abs(made - wanted).max() <= 2
