"""Which attention kernel is chosen, and that the dispatcher computes what torch computes."""

import pytest
import torch
import torch.nn.functional as F

from engine import attention
from engine.attention import BACKENDS, choose_attention, dispatched, other_kernel, takes_head
from engine.errors import BackendError

ALL = frozenset(BACKENDS)
CPU, TURING, AMPERE, ADA, HOPPER, BLACKWELL = None, (7, 5), (8, 0), (8, 9), (9, 0), (10, 0)


@pytest.mark.parametrize(
    ("capability", "installed", "asked", "backend"),
    [
        (CPU, ALL, "auto", "native"),
        (CPU, ALL, "native", "native"),
        (TURING, ALL, "auto", "native"),
        (AMPERE, ALL, "auto", "native"),
        (ADA, ALL, "auto", "native"),
        (HOPPER, ALL, "auto", "flash3"),
        (HOPPER, {"native", "flash2", "sage", "xformers"}, "auto", "native"),
        (HOPPER, ALL, "native", "native"),
        (BLACKWELL, ALL, "auto", "native"),
        (AMPERE, ALL, "flash2", "flash2"),
        (TURING, ALL, "xformers", "xformers"),
        (ADA, ALL, "sage", "sage"),
        (HOPPER, {"native", "sage"}, "sage", "sage"),
    ],
)
def test_choice(capability, installed, asked, backend):
    choice = choose_attention(capability, installed, asked)
    assert choice.backend == backend and choice.reason


@pytest.mark.parametrize(
    ("capability", "installed", "asked", "why"),
    [
        (CPU, ALL, "sage", "CUDA device"),
        (ADA, ALL, "flash3", "capability 8.9"),
        (BLACKWELL, ALL, "flash3", "capability 10.0"),
        (TURING, ALL, "sage", "capability 7.5"),
        (HOPPER, {"native"}, "flash3", "not installed"),
    ],
)
def test_what_cannot_be_had_is_refused(capability, installed, asked, why):
    with pytest.raises(BackendError, match=why):
        choose_attention(capability, installed, asked)


def test_lossy_only_when_asked():
    assert "lossy" in choose_attention(HOPPER, ALL, "sage").reason
    every = [choose_attention((major, 0), ALL).backend for major in range(7, 13)]
    assert "sage" not in every


def test_the_dispatcher_knows_every_backend():
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert all(AttentionBackendName(theirs) for theirs in BACKENDS.values())
    assert "native" in attention.installed_backends()


def test_a_cpu_never_asks():
    with torch.no_grad():
        assert other_kernel(torch.zeros(1, 2, 3, 64, dtype=torch.bfloat16), masked=False) is None


def test_the_kernel_asked_for_last_is_used_from_then_on(monkeypatch):
    monkeypatch.setattr(attention, "_CHOSEN", {})
    monkeypatch.setattr(attention, "installed_backends", lambda: ALL)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER)
    assert attention.backend_of(1) == "flash3"
    choice = attention.choose_for(torch.device("cuda", 1), "sage")
    assert attention.backend_of(1) == "flash3"  # as when an engine asks that then cannot load
    attention.use(torch.device("cuda", 1), choice)
    assert attention.backend_of(1) == "sage" and attention.backend_of(0) == "flash3"


def test_heads():
    assert takes_head("sage", 128) and not takes_head("sage", 48)
    assert takes_head("flash3", 24) and not takes_head("flash3", 12)
    assert not takes_head("flash3", 264)


@pytest.mark.parametrize("compiled", [False, True])
def test_dispatched_is_softmax_attention(compiled, monkeypatch):
    """With the choice in it, as a compiled block has it on a card: no graph break."""
    monkeypatch.setitem(attention._CHOSEN, 0, "native")

    def attend(q, k, v):
        return dispatched(attention.backend_of(0), q, k, v)

    q, k, v = torch.randn(3, 2, 5, 4, 8, generator=torch.Generator().manual_seed(0))
    run = torch.compile(attend, fullgraph=True, backend="eager") if compiled else attend
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
    with torch.no_grad():
        torch.testing.assert_close(run(q, k, v), expected.transpose(1, 2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_chosen_kernel_is_exact():
    q, k, v = torch.randn(3, 1, 300, 4, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        got = dispatched(attention.backend_of(0), q, k, v).float()
        wide = (x.float().transpose(1, 2) for x in (q, k, v))
        expected = F.scaled_dot_product_attention(*wide).transpose(1, 2)
    torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
