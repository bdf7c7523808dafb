"""Where bytes of weights lie, counted from shapes."""

from types import SimpleNamespace

import pytest
import torch

from engine import memory
from engine.memory import Footprint, footprint, free_bytes, work_here
from engine.placement import EXACT
from engine.quantize import is_large
from engine.runtime import Runtime
from tests.engine.conftest import TOY, random_dit

DIT = dict(random_dit(TOY).named_parameters())
OTHERS = {"text": 1000, "vae": 500, "vlm": 3000}
TABLES = {"dit": DIT} | {n: {"w": torch.empty(size, device="meta")} for n, size in OTHERS.items()}
WHOLE = sum(4 * p.numel() if n.split(".")[0] in EXACT else 2 * p.numel() for n, p in DIT.items())


def of(text: str) -> Footprint:
    return footprint(TABLES, Runtime.parse(text), itemsize=2)


def test_everything_on_the_device():
    """The VAE in fp32."""
    found = of("")
    assert (found.resident, found.visiting, found.away) == (WHOLE + 2000 + 2000 + 6000, {}, 0)


def test_encoders_come_one_at_a_time():
    found = of("offload=encoders")
    assert (found.resident, found.away) == (WHOLE + 2000, 8000)
    assert found.visiting == {"text": 2000, "vlm": 6000}
    assert found.peak([("text", 10), ("vlm", 5), ("dit", 7)]) == found.resident + 6005
    assert found.peak([("text", 10), ("vlm", 5), ("dit", 70_000)]) == found.resident + 70_000


def test_blocks_come_two_at_a_time():
    found = of("offload=group")
    away = sum(2 * p.numel() for n, p in DIT.items() if "blocks." in n)
    one = sum(2 * p.numel() for n, p in DIT.items() if n.startswith("blocks.0."))
    assert found.away == away + 8000 and found.visiting["dit"] == 2 * one
    assert found.resident == WHOLE - away + 2000


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_large_matrices_take_a_byte_a_number_and_a_scale_a_row(kind):
    saved = sum(p.numel() - 4 * len(p) for n, p in DIT.items() if is_large(n, p))
    assert of(f"weights={kind}").resident == of("").resident - saved


@pytest.mark.parametrize(("itemsize", "times"), [(2, 1), (4, 2)])
def test_work_grows_with_the_precision_and_the_vaes_is_always_fp32(itemsize, times):
    counted = [("text", 10), ("dit", 20), ("vae", 30)]
    wanted = [("text", 10 * times), ("dit", 20 * times), ("vae", 30)]
    assert work_here(counted, Runtime(), itemsize) == wanted


@pytest.mark.parametrize(
    ("encoders", "done"), [("local", "01234"), ("remote", "234"), ("only", "012")]
)
def test_work_of_models_that_are_elsewhere_is_not_done_here(encoders, done):
    stages = [("text", 0), ("vlm", 1), ("vae", 2), ("dit", 3), ("vae", 4)]
    found = work_here(stages, Runtime(encoders=encoders), itemsize=2)
    assert found == [stages[int(number)] for number in done]


def test_something_is_free():
    assert free_bytes(torch.device("cpu")) > 1_000_000


@pytest.mark.parametrize(
    ("limit", "left"), [("9000000", 4_100_000), ("4000000", 0), ("max", None), ("", None)]
)
def test_the_limit_of_a_container_counts(monkeypatch, tmp_path, limit, left):
    """Without the pages of files that it holds; what the machine has where there is no limit."""
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    if limit:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("5000000\n")
        stat = "anon 4000000\nactive_file 40000\ninactive_file 60000\n"
        (tmp_path / "memory.stat").write_text(stat)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**7))
    assert free_bytes(torch.device("cpu")) == (10**7 if left is None else left)
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    assert free_bytes(torch.device("cpu")) == (10**6 if left is None else min(left, 10**6))
