"""The DiT: Wan as published, and what the identity stream must and must not change."""

from dataclasses import replace

import pytest
import torch

from engine.dit import WanDiT
from engine.presets import WAN_1_3B, WAN_14B
from engine.stream import SubjectInputs
from tests.engine.conftest import TOY, diffusers_twin, random_dit, random_inputs

PLAIN = replace(TOY, subject_layers=0)


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [(WAN_1_3B, 1_418_996_800, 825), (WAN_14B, 14_288_491_584, 1095)],
    ids=["1.3b", "14b"],
)
def test_full_size_base_has_upstream_parameters(preset, parameters, tensors):
    with torch.device("meta"):
        model = WanDiT(replace(preset.dit, subject_layers=0))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors


def test_the_stream_only_adds_parameters():
    with torch.device("meta"):
        base = WanDiT(replace(WAN_1_3B.dit, subject_layers=0)).state_dict()
        full = WanDiT(WAN_1_3B.dit).state_dict()
    assert set(base) < set(full)
    assert all(base[name].shape == full[name].shape for name in base)


@pytest.mark.parametrize("heads", [2, 4], ids=["head-dim-24", "head-dim-12"])
@pytest.mark.parametrize("t", [0.999, 0.321, 0.003])
def test_equals_diffusers_wan(heads, t):
    config = replace(PLAIN, num_heads=heads)
    ours = random_dit(config)
    theirs = diffusers_twin(ours)
    given = random_inputs(batch=2)
    x, text = given["x"], given["text"]
    want = theirs(x, torch.tensor([t, t]) * 1000, text).sample
    got = ours(x, torch.tensor([t, t]), text)
    assert (got - want).abs().max() / want.abs().max() < 2e-5


def test_stream_is_silent_at_initialisation():
    model = WanDiT(TOY).eval()
    torch.nn.init.normal_(model.head.head.weight)
    given = random_inputs(batch=2)
    plain = model(given["x"], given["t"], given["text"])
    assert plain.abs().max() > 0
    assert torch.equal(model(given["x"], given["t"], given["text"], given["subjects"]), plain)


def test_first_gradient_reaches_the_values_of_every_layer():
    model = WanDiT(TOY)
    torch.nn.init.normal_(model.head.head.weight)
    given = random_inputs()
    with torch.enable_grad():
        model(given["x"], given["t"], given["text"], given["subjects"]).square().mean().backward()
    for block in model.subject_blocks:
        assert block.v.weight.grad.abs().max() > 0


def test_without_references_it_is_the_base():
    model, given = random_dit(), random_inputs(batch=2)
    base = random_dit(PLAIN)
    base.load_state_dict({k: model.state_dict()[k] for k in base.state_dict()})
    assert torch.equal(
        model(given["x"], given["t"], given["text"]), base(given["x"], given["t"], given["text"])
    )


def test_rows_without_subjects_are_the_base_within_a_batch():
    model, given = random_dit(), random_inputs(batch=2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    plain = model(given["x"], given["t"], given["text"])
    got = model(given["x"], given["t"], given["text"], subjects)
    assert torch.equal(got[1], plain[1])
    assert not torch.allclose(got[0], plain[0])


def test_conditions_kept_over_steps_equal_conditions_recomputed():
    model, given = random_dit(), random_inputs()
    kept = model.condition(given["text"], given["subjects"])
    for t in (0.9, 0.5, 0.1):
        t_B = torch.tensor([t])
        fresh = model(given["x"], t_B, given["text"], given["subjects"])
        assert torch.equal(model.denoise(given["x"], t_B, kept), fresh)


def test_a_step_computes_no_condition():
    model, given = random_dit(), random_inputs()
    calls: list[str] = []
    watched = {
        "text": model.text_embedding,
        "stream": model.subject_blocks[0],
        "text k": model.blocks[0].cross_attn.k,
        "vlm": model.vlm_projection[1],
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    condition = model.condition(given["text"], given["subjects"])
    assert sorted(calls) == sorted(watched)
    for _ in range(3):
        model.denoise(given["x"], given["t"], condition)
    assert len(calls) == len(watched)


@pytest.mark.parametrize(
    "switch",
    [
        {"intra": False},
        {"inter": "off"},
        {"inter": "joint"},
        {"cross_modal": False},
        {"use_vlm": False},
        {"tag": False},
        {"layout": "concat"},
        {"layout": "concat", "use_vlm": False},
        {"stream_time": True},
        {"stream_time": True, "layout": "concat"},
        {"stream_time": True, "cross_modal": False},
    ],
    ids=str,
)
def test_each_ablation_listens_to_the_references_and_trains(switch):
    model, given = random_dit(replace(TOY, **switch)), random_inputs(batch=2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    with torch.enable_grad():
        got = model(given["x"], given["t"], given["text"], subjects)
        got.square().mean().backward()
    plain = model(given["x"], given["t"], given["text"])
    torch.testing.assert_close(got[1], plain[1], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got[0], plain[0], atol=1e-3)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_training_computes_what_inference_computes():
    """Attention goes another way when gradients are wanted on a CPU; the numbers agree."""
    model, given = random_dit(), random_inputs(batch=2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    still = model(given["x"], given["t"], given["text"], subjects)
    with torch.enable_grad():
        live = model(given["x"], given["t"], given["text"], subjects)
    torch.testing.assert_close(live.detach(), still, rtol=1e-4, atol=1e-5)


def test_tokens_lie_channels_last():
    """Otherwise every norm of every block copies them first (measured: 3 % of a step)."""
    model, given = random_dit(), random_inputs(batch=2)
    seen: list[bool] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    model(given["x"], given["t"], given["text"], given["subjects"])
    assert seen == [True] * len(model.blocks)


def test_text_pads_are_attended():
    model, given = random_dit(PLAIN), random_inputs()
    text = given["text"].clone()
    text[:, 4:] = 0
    assert not torch.allclose(
        model(given["x"], given["t"], text), model(given["x"], given["t"], text[:, :4]), atol=1e-4
    )


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    model, given = random_dit(), random_inputs(batch=2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = model(given["x"], given["t"], given["text"], subjects)
    got = compiled(given["x"], given["t"], given["text"], subjects)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_autocast_keeps_the_residual_stream_wide():
    model, given = random_dit(), random_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(given["x"], given["t"], given["text"], given["subjects"])
    high = model(given["x"], given["t"], given["text"], given["subjects"])
    assert low.dtype == torch.float32
    assert (low - high).abs().mean() / high.abs().mean() < 0.03


@pytest.mark.parametrize("stream_time", [False, True])
@pytest.mark.parametrize("layout", ["stream", "concat"])
def test_one_condition_serves_several_noises(layout, stream_time):
    """Training draws several times and noises for each clip: rows of x in groups."""
    model = random_dit(replace(TOY, layout=layout, stream_time=stream_time))
    given = random_inputs(batch=2)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    subjects = given["subjects"]._replace(subject_mask_BS=mask)
    x = torch.randn(6, *given["x"].shape[1:], generator=torch.Generator().manual_seed(5))
    t = torch.linspace(0.95, 0.05, 6, dtype=torch.float64)
    grouped = model(x, t, given["text"], subjects)
    for row in range(6):
        clip = slice(row // 3, row // 3 + 1)
        one = SubjectInputs(*(None if part is None else part[clip] for part in subjects))
        alone = model(x[row : row + 1], t[row : row + 1], given["text"][clip], one)
        torch.testing.assert_close(grouped[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_tokens_that_are_not_kept_are_seen_by_none():
    """What is kept of the first frame is a video of one frame; of both rows, other tokens."""
    model, given = random_dit(), random_inputs(batch=2)
    x, t, text, subjects = (given[name] for name in ("x", "t", "text", "subjects"))
    whole = model(x, t, text, subjects)
    every = torch.arange(18).expand(2, 18)
    assert torch.equal(model(x, t, text, subjects, every), whole)
    first = model(x, t, text, subjects, every[:, :6])
    alone = model(x[:, :, :1], t, text, subjects)
    torch.testing.assert_close(first[:, :, :1], alone, rtol=1e-5, atol=1e-5)
    assert not first[:, :, 1:].any()
    kept = torch.tensor([[0, 4, 11], [2, 7, 17]])
    both = model(x, t, text, subjects, kept)
    for row in range(2):
        one = SubjectInputs(*(None if p is None else p[row : row + 1] for p in subjects))
        at = slice(row, row + 1)
        torch.testing.assert_close(
            both[at], model(x[at], t[at], text[at], one, kept[at]), rtol=1e-4, atol=1e-4
        )
    assert not torch.allclose(both[both != 0], whole[both != 0], atol=1e-3)


def test_tokens_are_kept_of_a_video_alone():
    given = random_inputs()
    model = random_dit(replace(TOY, layout="concat"))
    with pytest.raises(ValueError, match="the video alone"):
        model(given["x"], given["t"], given["text"], given["subjects"], torch.zeros(1, 1).long())
