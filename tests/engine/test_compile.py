"""The four ways to a velocity: the same numbers, the weights of now, and clear refusals."""

import importlib
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from engine import compile as compiling
from engine.compile import (
    MODES,
    AOTIVelocity,
    TensorRTVelocity,
    export,
    lay_flat,
    parts_of,
    velocity_of,
)
from engine.dit import Condition, WanDiT
from engine.errors import BackendError
from engine.packages import PROGRAM, Packages, key
from engine.spec import Guidance, Spec
from tests.engine.conftest import TOY, TOY_PRESET, random_dit, random_engine, random_inputs

SMALL = replace(TOY, num_layers=2, subject_layers=1)
PLAIN = replace(SMALL, subject_layers=0)
TOLERANCE = 1e-5

Given = tuple[torch.Tensor, torch.Tensor, Condition]


def arguments(dit: WanDiT, subjects: bool = True, masked: bool = False) -> Given:
    given = random_inputs(batch=2)
    raw = given["subjects"] if subjects else None
    if raw is not None and masked:
        mask = torch.tensor([[True, True, False], [False, False, False]])
        raw = raw._replace(subject_mask_BS=mask)
    return given["x"], given["t"], dit.condition(given["text"], raw)


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def test_eager_is_denoise_itself():
    dit = random_dit(SMALL)
    assert velocity_of(dit) == dit.denoise


def test_unknown_mode_is_refused_with_the_list():
    with pytest.raises(BackendError, match="'turbo'; there are eager, inductor, aoti, tensorrt"):
        velocity_of(random_dit(SMALL), "turbo")


def test_an_engine_samples_with_its_velocity():
    engine, steps = random_engine(), []
    assert engine.velocity == engine.dit.denoise
    engine.velocity = lambda x, t, condition: steps.append(float(t[0])) or torch.zeros_like(x)
    engine.generate(Spec.of(TOY_PRESET, "a sunny meadow", steps=2, guidance=Guidance(scale=1)), [])
    assert len(steps) == 2
    with pytest.raises(BackendError, match="turbo"):
        random_engine(compile="turbo")


# inductor


def test_inductor_compiles_one_block_for_all_and_leaves_the_model_alone():
    dit = random_dit(replace(TOY, num_layers=3, subject_layers=3))
    x, t, condition = arguments(dit, masked=True)
    want = dit.denoise(x, t, condition)
    torch.compiler.reset()
    counters.clear()
    velocity = velocity_of(dit, "inductor")
    assert apart(velocity(x, t, condition), want) < TOLERANCE
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert all(block._compiled_call_impl is None for block in dit.blocks)
    assert torch.equal(dit.denoise(x, t, condition), want)

    dit.load_state_dict(random_dit(dit.config, seed=5).state_dict(), assign=True)
    assert apart(velocity(x, t, condition), dit.denoise(x, t, condition)) < TOLERANCE
    assert counters["stats"]["unique_graphs"] == 1


# export: what packages are made of


@pytest.mark.parametrize(
    ("config", "subjects", "masked", "tail"),
    [
        (SMALL, True, False, False),
        (SMALL, True, True, False),
        (SMALL, False, False, False),
        (PLAIN, False, False, True),
        (replace(SMALL, layout="concat"), True, True, False),
    ],
    ids=["subjects", "masks", "without subjects", "plain with a tail", "concat"],
)
def test_the_whole_step_exports(config, subjects, masked, tail):
    dit = random_dit(config)
    x, t, condition = arguments(dit, subjects, masked)
    if tail:
        condition = condition._replace(tail_BCFHW=x[:, :, :1])
    call = lay_flat(x, t, condition)
    program = export(dit, call)
    names = {name.removeprefix("dit.") for name in program.state_dict}
    assert names == set(dit.state_dict())
    # One step later and for another request of this kind: nothing of the example is left in it.
    other = Condition(*compiling._filled(call.outline[2], (w * 0.9 for w in call.tensors[2:])))
    if masked:
        other = condition
    later = lay_flat(x + 1, t * 0.5, other)
    assert apart(program.module()(*later.tensors), dit.denoise(x + 1, t * 0.5, other)) < TOLERANCE


def test_laid_flat_and_back():
    dit = random_dit(SMALL)
    x, t, condition = arguments(dit, masked=True)
    call = lay_flat(x.transpose(-1, -2), t, condition)
    assert all(tensor.is_contiguous() for tensor in call.tensors)
    back_x, back_t, back = compiling._filled(call.outline, iter(call.tensors))
    assert torch.equal(back_x, x.transpose(-1, -2)) and back_t is t
    assert isinstance(back, Condition) and back.subjects.grid == condition.subjects.grid
    assert back.text[1].k_BKND is condition.text[1].k_BKND


def test_the_key_tells_what_a_program_cannot_be_shared_across(monkeypatch):
    dit = random_dit(SMALL)
    x, t, condition = arguments(dit, masked=True)
    call = lay_flat(x, t, condition)

    def named(dit: WanDiT = dit, call: compiling.Call = call, mode: str = "aoti") -> str:
        return key(parts_of(dit, call, mode))

    base = named()
    assert named(random_dit(SMALL, seed=9)) == base, "weights are not part of it"
    others = [
        named(random_dit(replace(SMALL, text_len=9))),
        named(random_dit(SMALL).bfloat16()),
        named(call=lay_flat(x[:, :, :2], t, condition)),
        named(call=lay_flat(x.double(), t, condition)),
        named(call=lay_flat(*arguments(dit))),
        named(call=lay_flat(*arguments(dit, subjects=False))),
        named(mode="tensorrt"),
    ]
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    others.append(named())
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "machine", lambda device: "another processor")
    others.append(named())
    assert len({base, *others}) == len(others) + 1


# aoti


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages that the tests of this module share: a build takes half a minute of a slow core."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The packages that a test built."""
    built: list[Path] = []
    build = AOTIVelocity._build

    def counted(self: AOTIVelocity, path: Path, call: compiling.Call) -> None:
        built.append(path)
        build(self, path, call)

    monkeypatch.setattr(AOTIVelocity, "_build", counted)
    return built


ONE = replace(SMALL, num_layers=1)


def test_a_package_follows_the_weights_without_another_build(store, builds):
    dit = random_dit(ONE)
    x, t, condition = arguments(dit, masked=True)
    velocity = velocity_of(dit, "aoti", store)
    first = velocity(x, t, condition)
    assert apart(first, dit.denoise(x, t, condition)) < TOLERANCE

    for seed, assign in ((5, False), (6, True)):
        dit.load_state_dict(random_dit(ONE, seed=seed).state_dict(), assign=assign)
        got = velocity(x, t, condition)
        assert apart(got, dit.denoise(x, t, condition)) < TOLERANCE
        assert apart(got, first) > 0.1
    dit.head.head.weight.mul_(2.0)
    assert apart(velocity(x, t, condition), dit.denoise(x, t, condition)) < TOLERANCE

    # Another checkpoint beside it, as between two jobs: each velocity has its own weights.
    new = random_dit(ONE, seed=7)
    beside = velocity_of(new, "aoti", store)
    assert apart(beside(x, t, condition), new.denoise(x, t, condition)) < TOLERANCE
    assert apart(velocity(x, t, condition), dit.denoise(x, t, condition)) < TOLERANCE
    assert len(builds) <= 1 and len(list(store.iterdir())) == 1


def test_a_package_of_another_torch_is_never_opened(tmp_path, caplog):
    """Neither under its own name nor, brought here by hand, under ours."""
    call = lay_flat(*arguments(random_dit(SMALL)))
    own = parts_of(random_dit(SMALL), call, "aoti")
    packages = Packages(tmp_path)
    foreign = own | {"torch": "2.12.0+cu130 13.0"}
    theirs = packages.get_or(foreign, lambda path: path.write_bytes(b"theirs"))
    ours = packages.get_or(own, lambda path: path.write_bytes(b"ours"))
    assert (theirs.read_bytes(), ours.read_bytes()) == (b"theirs", b"ours")
    shutil.rmtree(ours.parent)
    theirs.parent.rename(ours.parent)
    with caplog.at_level(logging.WARNING):
        again = packages.get_or(own, lambda path: path.write_bytes(b"again"))
    assert again == ours and again.read_bytes() == b"again"
    assert "built for something else than its name says" in caplog.text


def test_a_damaged_package_is_never_opened(store, builds, monkeypatch, caplog):
    dit = random_dit(ONE)
    given = arguments(dit, masked=True)
    velocity = velocity_of(dit, "aoti", store)
    want = velocity(*given)
    (found,) = store.iterdir()
    whole = (found / PROGRAM).read_bytes()
    (found / PROGRAM).write_bytes(whole[:-100])
    builds.clear()
    # The package of before stands in for the build, which would take as long again.
    monkeypatch.setattr(AOTIVelocity, "_build", lambda self, path, call: path.write_bytes(whole))
    with caplog.at_level(logging.WARNING):
        again = velocity_of(dit, "aoti", store)(*given)
    assert torch.equal(again, want) and str(found) in caplog.text


def test_a_failed_build_says_what_to_do(tmp_path, monkeypatch):
    def fails(self: AOTIVelocity, path: Path, call: compiling.Call) -> None:
        raise RuntimeError("no C++ compiler\nmore")

    monkeypatch.setattr(AOTIVelocity, "_build", fails)
    dit = random_dit(ONE)
    with pytest.raises(BackendError, match="no C.. compiler.; mode 'eager' needs nothing built"):
        velocity_of(dit, "aoti", tmp_path)(*arguments(dit))
    assert list(tmp_path.iterdir()) == []


def test_packages_refuse_autocast(tmp_path):
    dit = random_dit(ONE)
    given = arguments(dit)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(BackendError, match="autocast"):
        velocity_of(dit, "aoti", tmp_path)(*given)


# tensorrt: its libraries are not here, so only what leads to it


def test_tensorrt_absent_says_what_to_install():
    if importlib.util.find_spec("torch_tensorrt") is not None:
        pytest.skip("torch-tensorrt is installed")
    with pytest.raises(BackendError, match=r"pip install -e .\.\[gpu\]"):
        velocity_of(random_dit(SMALL), "tensorrt")


class Recorded:
    """Stands where torch_tensorrt would: writes down what it is asked, computes eagerly."""

    __version__ = "2.13.0"

    def __init__(self) -> None:
        self.dynamo, self.asked = self, []

    def compile(self, program: object, **options: object) -> object:
        self.asked.append(("compile", options["immutable_weights"]))
        return program

    def save(self, program: object, path: str, **options: object) -> None:
        self.asked.append(("save", options["output_format"]))
        torch.export.save(program, path)

    def load(self, path: str) -> object:
        self.asked.append(("load",))
        return torch.export.load(path)

    def refit_module_weights(self, built: object, program: object) -> object:
        self.asked.append(("refit",))
        return program.module()


def test_tensorrt_is_asked_in_this_order(tmp_path, monkeypatch):
    """The calls and their order, not what they do: no TensorRT has run here."""
    trt = Recorded()
    monkeypatch.setattr(compiling, "import_tensorrt", lambda: trt)
    dit = random_dit(ONE)
    given = arguments(dit)
    velocity = velocity_of(dit, "tensorrt", tmp_path)
    with pytest.raises(BackendError, match="needs a CUDA device, not cpu"):
        velocity(*given)

    monkeypatch.setattr(TensorRTVelocity, "DEVICE", "cpu")
    for _ in range(2):
        assert apart(velocity(*given), dit.denoise(*given)) < TOLERANCE
    built = [("compile", False), ("save", "exported_program"), ("load",), ("refit",)]
    assert trt.asked == built
    dit.head.head.weight.mul_(2.0)
    assert apart(velocity(*given), dit.denoise(*given)) < TOLERANCE
    assert trt.asked == [*built, ("refit",)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_on_a_card(mode, tmp_path):
    if mode == "tensorrt":
        pytest.importorskip("torch_tensorrt")
    dit = random_dit(SMALL).cuda()
    x, t, condition = compiling._filled(
        (call := lay_flat(*arguments(random_dit(SMALL)))).outline,
        (tensor.cuda() for tensor in call.tensors),
    )
    velocity = velocity_of(dit, mode, tmp_path)
    for seed in (5, 6):
        dit.load_state_dict(random_dit(SMALL, seed=seed).state_dict())
        assert apart(velocity(x, t, condition), dit.denoise(x, t, condition)) < 1e-3
