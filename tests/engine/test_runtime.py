"""How a model is placed and run, in words: every one of them checked, and read as it is written."""

from dataclasses import fields
from itertools import product

import pytest

from engine.attention import BACKENDS
from engine.errors import BackendError
from engine.runtime import ATTENTIONS, CHOICES, STANDARD, Runtime


def test_parse_reads_what_str_writes():
    devices = ("auto", "cpu", "cuda", "cuda:7")
    for device, *values in product(devices, *CHOICES.values()):
        given = dict(zip(CHOICES, values, strict=True))
        try:
            runtime = Runtime(device, **given)
        except BackendError:
            continue  # some do not go together
        assert Runtime.parse(str(runtime)) == runtime


def test_every_field_has_its_words():
    assert {f.name for f in fields(Runtime)} == {"device", "tile", *CHOICES}
    assert all(STANDARD == Runtime(**{name: known[0]}) for name, known in CHOICES.items())


def test_what_is_left_out_is_standard():
    assert Runtime.parse("") == Runtime.parse(" , ") == STANDARD and str(STANDARD) == ""
    given = Runtime.parse(" compile = inductor, device=cuda:1")
    assert given == Runtime(device="cuda:1", compile="inductor")
    assert str(given) == "device=cuda:1,compile=inductor"


def test_a_tile_is_a_number_of_cells():
    given = Runtime.parse("tile=4096")
    assert given.max_cells == 4096 and str(given) == "tile=4096" and STANDARD.max_cells == 0


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour=red", "'colour'; there are device, dtype, weights, offload, encoders, "),
        ("compile=fast", "compile 'fast'; there are eager, inductor, aoti, tensorrt"),
        ("dtype=fp16", "dtype 'fp16'; there are auto, fp32, bf16"),
        ("attention=flash9", "there are auto, native, flash3, flash2, xformers, sage"),
        ("device=gpu", "there are auto, cpu, cuda, cuda:1"),
        ("device=cuda:", "unknown device 'cuda:'"),
        ("dtype=bf16,dtype=fp32", "dtype is there twice"),
        ("tile=0", "tile '0'; there are none, any number of latent cells, such as 4096"),
        ("tile=big", "tile 'big'"),
        ("inductor", "'inductor' must be KEY=VALUE"),
        ("compile=", "unknown compile ''"),
        ("encoders=cpu", "unknown encoders 'cpu'; there are local, remote, only"),
        ("encoders=remote,offload=encoders", "offload=encoders moves what encoders=remote"),
        ("encoders=only,weights=int8", "weights means nothing with encoders=only"),
        ("encoders=only,tile=4096", "tile means nothing with encoders=only"),
        ("encoders=only,offload=group", "offload=group means nothing with encoders=only"),
    ],
)
def test_other_words_are_refused_with_those_that_there_are(text, told):
    with pytest.raises(BackendError) as caught:
        Runtime.parse(text)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", [f.name for f in fields(Runtime)])
@pytest.mark.parametrize("value", [4096, None, ["cpu"]])
def test_values_that_are_no_text_are_refused_with_their_field(name, value):
    with pytest.raises(BackendError, match=f"{name} must be text such as '"):
        Runtime(**{name: value})


def test_the_kernels_are_those_of_the_dispatcher():
    assert ATTENTIONS == ("auto", *BACKENDS)
