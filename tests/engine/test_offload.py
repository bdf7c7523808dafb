"""Weights that live on the CPU: the same bits where nothing moves, and all moved where it does."""

import pytest
import torch
from torch import nn

from engine.offload import AWAY, grouped, is_away, visit
from engine.pipeline import Engine
from engine.runtime import Runtime
from tests.engine.conftest import TOY, random_dit, random_encoders, random_inputs
from tests.engine.test_placement import CARD, asked
from tests.engine.test_vace import random_vace

CPU, META = torch.device("cpu"), torch.device("meta")


def test_a_visitor_is_there_for_its_forward_and_what_comes_out_goes_home():
    """On meta, where a weight left behind would be an error, and no contents come back."""
    encoder = random_encoders().text.model
    before = dict(encoder.named_parameters(remove_duplicate=False))
    seen: list[bool] = []
    encoder.encoder.block[0].register_forward_hook(
        lambda module, *_: seen.append(all(p.is_meta for p in encoder.parameters()))
    )
    visit(encoder, META)
    ids = torch.zeros(1, 4, dtype=torch.long, device="meta")
    assert encoder(input_ids=ids).last_hidden_state.is_meta
    assert seen == [True]
    after = dict(encoder.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_visit_that_fails_leaves_everything_at_home():
    layer = nn.Linear(2, 3)
    weight = layer.weight
    visit(layer, META)
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 7))
    assert layer.weight is weight
    visit(layer, CPU)


def test_visiting_where_one_is_changes_no_bit():
    encoders = random_encoders()
    wanted = encoders.text.encode(["anna waves"])
    visit(encoders.text.model, CPU)
    assert torch.equal(encoders.text.encode(["anna waves"]), wanted)


@pytest.mark.parametrize("num_subjects", [1, 3])
def test_what_is_computed_once_finds_its_weights(num_subjects):
    """`condition` calls layers of blocks that are not on the device: on meta, nothing else is."""
    dit = random_dit(TOY)
    grouped(dit, CPU)
    for name, module in dit.named_children():
        if name not in AWAY:
            module.to(META)
    dit.slot_embedding = nn.Parameter(dit.slot_embedding.to(META))
    home = {n: p for n, p in dit.named_parameters() if is_away(n)}
    for layer in dit.modules():
        if layer._forward_pre_hooks:
            layer._forward_pre_hooks.clear()
            layer._forward_hooks.clear()
            visit(layer, META)
    given = random_inputs(num_subjects=num_subjects)
    subjects = type(given["subjects"])(
        *(None if x is None else x.to(META) for x in given["subjects"])
    )
    condition = dit.condition(given["text"].to(META), subjects)
    assert all(kv.k_BKND.is_meta and kv.v_BKND.is_meta for kv in condition.text)
    assert all(kv.k_BKND.is_meta for kv in condition.subjects.layers)
    assert all(p is home[n] for n, p in dit.named_parameters() if is_away(n))


@pytest.mark.parametrize("num_subjects", [0, 2])
def test_groups_change_no_bit(num_subjects):
    given = random_inputs(batch=2, num_subjects=max(1, num_subjects))
    dit, twin = random_dit(TOY), random_dit(TOY)
    velocity = grouped(twin, CPU)
    conditions = [
        model.condition(given["text"], given["subjects"] if num_subjects else None)
        for model in (dit, twin)
    ]
    wanted = dit.denoise(given["x"], given["t"], conditions[0])
    for _ in range(2):
        assert torch.equal(velocity(given["x"], given["t"], conditions[1]), wanted)


def test_groups_know_vaces_blocks():
    steps = grouped(random_vace(), CPU)
    assert {name.split(".")[0] for name, _ in steps.named_parameters()} == {"blocks", "vace_blocks"}


def test_an_engine_off_its_device_makes_the_same_video(loud_model):
    here = Engine.load(loud_model)
    spec, cast = asked(here)
    wanted = here.generate(spec, cast).frames
    for offload in ("encoders", "group"):
        engine = Engine.load(loud_model, runtime=Runtime(device="cpu", offload=offload))
        assert (engine.generate(spec, cast).frames == wanted).all()


@pytest.mark.parametrize("offload", [pytest.param(o, marks=CARD) for o in ("encoders", "group")])
@pytest.mark.parametrize("weights", ["full", "int8"])
def test_a_card_makes_the_same_with_its_weights_elsewhere(loud_model, offload, weights):
    if weights != "full":
        pytest.importorskip("torchao")
    runtimes = (Runtime(device="cuda", weights=weights, offload=o) for o in ("none", offload))
    here, there = (Engine.load(loud_model, runtime=runtime) for runtime in runtimes)
    spec, cast = asked(here)
    wanted = here.generate(spec, cast).frames.astype(int)
    for _ in range(2):
        assert abs(there.generate(spec, cast).frames.astype(int) - wanted).max() <= 2
    assert there.encoders.text.model.device.type == "cpu"
