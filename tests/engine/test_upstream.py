"""Published weights: both layouts load, strictly, and leave the identity stream alone."""

from dataclasses import replace

import pytest
import torch

from engine.errors import CheckpointError
from engine.upstream import PREFIX, diffusers_name, load_base
from tests.engine.conftest import TOY, random_dit, random_inputs

BASE = random_dit(replace(TOY, subject_layers=0), seed=5).state_dict()


@pytest.mark.parametrize(
    "rename", [str, diffusers_name, lambda name: PREFIX + name], ids=["wan", "diffusers", "comfy"]
)
def test_either_layout_loads_and_the_stream_stays(rename):
    model = random_dit()
    before = {k: v.clone() for k, v in model.state_dict().items() if k not in BASE}
    load_base(model, {rename(name): value for name, value in BASE.items()})
    after = model.state_dict()
    assert before and all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(after[name], value) for name, value in BASE.items())


def test_names_map_one_to_one():
    assert len({diffusers_name(name) for name in BASE}) == len(BASE)


def test_a_loaded_base_is_that_base_without_subjects():
    model, plain = random_dit(), random_dit(replace(TOY, subject_layers=0), 5)
    load_base(model, BASE)
    given = random_inputs()
    assert torch.equal(
        model(given["x"], given["t"], given["text"]), plain(given["x"], given["t"], given["text"])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.head.bias": None}, "lacks head.head.bias"),
        ({"k_img.weight": torch.ones(1)}, "unknown k_img.weight"),
        ({"head.head.bias": torch.ones(2)}, "head.head.bias is"),
    ],
)
def test_a_file_of_another_model_is_refused(change, message):
    tensors = {k: v for k, v in {**BASE, **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        load_base(random_dit(), tensors)
