"""The velocity of a DiT in four ways, all with the signature of `WanDiT.denoise`.

    eager      the method itself
    inductor   torch.compile of the block that repeats: seconds at the first call, any shape
    aoti       an ahead-of-time package of the whole step (AOTInductor), kept on disk: a minute or
               more at the first call ever of a shape, a fraction of a second in later processes
    tensorrt   the same exported step built by torch-tensorrt, refitted when the weights change

A package fits one set of shapes and kinds (`Call.outline`), one configuration, one kind of machine
and one torch; all of that is its key. Weights are not in the key: packages read those that the DiT
has now, after a load in place, an assignment or a move as well.

Packages compute no gradients and know no autocast. Sources: the `torch.export`, AOTInductor and
torch-tensorrt documentation for 2.13. The tensorrt build has not run on our machines.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from engine import dit as dit_module
from engine import layers, stream, vace
from engine.dit import Block, Condition, WanDiT
from engine.errors import BackendError
from engine.packages import Packages, Parts, default_folder
from engine.runtime import MODES
from engine.sample import Velocity

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PREFIX = "dit."  # of the weights' names in an exported program


def velocity_of(dit: WanDiT, mode: str = "eager", folder: Path | None = None) -> Velocity:
    """v [B, C, F, H, W] of (x [B, C, F, H, W], t [B], condition), computed in the way asked for.

    Against eager, the largest difference over the largest value stays below 1e-5 in fp32 and
    2e-2 in bf16 (measured on a CPU: 9e-7 and 5e-3).

    Args:
        mode: one of `MODES`. None of them changes what `dit` itself does.
        folder: where packages are kept; None is `engine.packages.default_folder()`.

    Raises:
        BackendError: the mode is unknown, or what it needs is not installed. Calls raise it too,
            when a package cannot be built or stored.
    """
    if mode not in MODES:
        raise BackendError(f"unknown compile mode {mode!r}; there are {', '.join(MODES)}")
    if mode == "eager":
        return dit.denoise
    if mode == "inductor":
        return _regional(dit)
    kind = AOTIVelocity if mode == "aoti" else TensorRTVelocity
    return kind(dit, Packages(folder or default_folder()))


def _regional(dit: WanDiT) -> Velocity:
    """`denoise` of a twin of `dit` whose blocks are compiled one by one.

    All blocks share a graph, one more for those with subjects. A second shape compiles once more,
    for sizes that vary; what exceeds torch's `recompile_limit` runs eagerly.
    """
    twin, blocks = twin_of(dit)
    for block in blocks:
        block.compile()
    return twin.denoise


def twin_of(dit: WanDiT) -> tuple[WanDiT, list[Block]]:
    """A DiT that shares every weight with this one, loads and moves included, and its blocks.

    `nn.Module.compile` and the like change a module for all who call it, training too. So twins are
    changed: shallow copies of the whole and of its blocks that differ in how they are called.
    """
    copies = {
        name: [copy.copy(cast(Block, block)) for block in blocks.children()]
        for name in ("blocks", "vace_blocks")
        if (blocks := dit._modules.get(name)) is not None
    }
    return twin_with(dit, copies), [block for blocks in copies.values() for block in blocks]


def twin_with(dit: WanDiT, blocks: Mapping[str, Sequence[nn.Module]]) -> WanDiT:
    """A shallow copy of a DiT in which these lists of blocks, by attribute, take others' place."""
    twin = copy.copy(dit)
    # A dictionary of its own, or the original would be changed too.
    twin.__dict__["_modules"] = dit._modules | {
        name: nn.ModuleList(others) for name, others in blocks.items()
    }
    return twin


class Slot(NamedTuple):
    """Where a tensor was: shape and kind of what must come there."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Call(NamedTuple):
    """The arguments of a velocity laid flat, as `torch.export` wants them.

    tensors: x, t and the condition's, in its own order, contiguous. outline: the same arguments
    with a `Slot` for each tensor; hashable, and all that a program is specialised to.
    """

    tensors: tuple[Tensor, ...]
    outline: tuple[Any, ...]


def lay_flat(x_BCFHW: Tensor, t_B: Tensor, condition: Condition) -> Call:
    """The arguments as tensors and an outline; what a step never reads is neither."""
    tensors: list[Tensor] = []
    outline = _outline((x_BCFHW, t_B, condition), tensors)
    return Call(tuple(tensors), outline)


def _outline(part: Any, tensors: list[Tensor]) -> Any:
    if isinstance(part, Tensor):
        # Compiled code takes strides for granted.
        tensors.append(part.contiguous())
        return Slot(tuple(part.shape), part.dtype, part.device)
    if not isinstance(part, tuple):
        return part
    parts = [_outline(each, tensors) for each in part]
    return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)


def _filled(outline: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(outline, Slot):
        return next(tensors)
    if not isinstance(outline, tuple):
        return outline
    parts = [_filled(each, tensors) for each in outline]
    return type(outline)(*parts) if hasattr(outline, "_fields") else tuple(parts)


class _Flat(nn.Module):
    """`denoise` as a module of plain tensors."""

    def __init__(self, dit: WanDiT, outline: tuple[Any, ...]) -> None:
        super().__init__()
        self.dit = dit
        self.outline = outline

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.dit.denoise(*_filled(self.outline, iter(tensors)))


def export(dit: WanDiT, call: Call) -> ExportedProgram:
    """The whole step as a graph that reads its weights by name; takes `call.tensors`."""
    with torch.no_grad():
        return torch.export.export(_Flat(dit, call.outline), call.tensors, strict=False)


def weights(dit: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those too that a checkpoint leaves out."""
    return dict(dit.named_parameters()) | dict(dit.named_buffers())


def parts_of(dit: WanDiT, call: Call, mode: str) -> Parts:
    """What a package depends on, in words; `engine.packages.key` makes its name of it."""
    kinds = [f"{name} {tuple(w.shape)} {w.dtype}" for name, w in weights(dit).items()]
    modules = (dit_module, stream, layers, vace)
    code = b"".join(Path(cast(str, module.__file__)).read_bytes() for module in modules)
    return {
        "mode": mode,
        "config": repr(sorted(asdict(dit.config).items())),
        "inputs": repr(call.outline),
        "weights": hashlib.sha256("\n".join(kinds).encode()).hexdigest(),
        "code": hashlib.sha256(code).hexdigest(),
        "machine": machine(call.tensors[0].device),
        "torch": f"{torch.__version__} {torch.version.cuda}",
    }


def machine(device: torch.device) -> str:
    """What compiled code may count on: the card, or the processor's instructions."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{device} {torch.cuda.get_device_name(device)} sm_{major}{minor}"
    # Inductor compiles for the very processor (-march=native): its name alone says too little.
    has = torch.cpu.get_capabilities()
    abilities = sorted(name for name, value in has.items() if value is True)
    level = torch.backends.cpu.get_cpu_capability()
    return f"{device} {platform.machine()} {level} {' '.join(abilities)}"


class _Fitted(NamedTuple):
    """A program, and the state of the weights that it was last given."""

    program: Any
    stamp: tuple[Any, ...]


class Packaged:
    """A velocity whose programs come from packages, one per outline of the arguments.

    Keeps the programs, and the weights that they point to; nothing of any call.
    """

    mode = ""

    def __init__(self, dit: WanDiT, packages: Packages) -> None:
        self.dit = dit
        self.packages = packages
        self._programs: dict[tuple[Any, ...], _Fitted] = {}
        self._held: dict[str, Tensor] = {}
        self._stamp: tuple[Any, ...] = ()

    def __call__(self, x_BCFHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        if torch.is_autocast_enabled(x_BCFHW.device.type):
            raise BackendError(
                f"compile mode {self.mode!r} knows no autocast; cast the model, or use 'inductor'"
            )
        call = lay_flat(x_BCFHW, t_B, condition)
        with torch.no_grad():
            self._hold_weights()
            return cast(Tensor, self._program(call)(*call.tensors))

    def _program(self, call: Call) -> Any:
        found = self._programs.get(call.outline)
        if found is None:
            found = _Fitted(self._open(self._package(call), call), ())
        if found.stamp != self._stamp:
            found = _Fitted(self._fit(found.program, call), self._stamp)
            self._programs[call.outline] = found
        return found.program

    def _package(self, call: Call) -> Path:
        parts = {**parts_of(self.dit, call, self.mode), "library": self._library()}
        try:
            return self.packages.get_or(parts, lambda path: self._build(path, call))
        except (RuntimeError, OSError) as error:
            raise BackendError(
                f"compile mode {self.mode!r} could not build this model ({_first_line(error)}); "
                f"mode 'eager' needs nothing built"
            ) from error

    def _hold_weights(self) -> None:
        """Notices weights that lie elsewhere, or were written to, since the last call.

        An address cannot be another tensor's by now: the old ones are held until then.
        """
        now = weights(self.dit)
        stamp = tuple((weight.data_ptr(), weight._version) for weight in now.values())
        if stamp == self._stamp:
            return
        held = {PREFIX + name: weight.detach() for name, weight in now.items()}
        if _kinds(held) != _kinds(self._held):
            self._programs.clear()  # a cast, or other modules: another package
        self._stamp, self._held = stamp, held

    def _library(self) -> str:
        return ""

    def _build(self, path: Path, call: Call) -> None:
        raise AssertionError("each mode builds in its own way")

    def _open(self, path: Path, call: Call) -> Any:
        raise AssertionError("each mode opens in its own way")

    def _fit(self, program: Any, call: Call) -> Any:
        raise AssertionError("each mode takes weights in its own way")


class AOTIVelocity(Packaged):
    """Packages of AOTInductor. They hold no weights, but point to those of the DiT."""

    mode = "aoti"
    # Weights stay outside, and nothing is computed from them ahead: they may change.
    OPTIONS = {
        "aot_inductor.package_constants_in_so": False,
        "aot_inductor.use_runtime_constant_folding": False,
    }

    def _build(self, path: Path, call: Call) -> None:
        from torch._inductor import aoti_compile_and_package

        program = export(self.dit, call)
        aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=dict(self.OPTIONS)
        )

    def _open(self, path: Path, call: Call) -> Any:
        from torch._inductor import aoti_load_package

        index = call.tensors[0].device.index
        return aoti_load_package(str(path), device_index=-1 if index is None else index)

    def _fit(self, program: Any, call: Call) -> Any:
        names = set(program.get_constant_fqns())
        if names - self._held.keys():
            alien = ", ".join(sorted(names - self._held.keys()))
            raise BackendError(f"the package wants constants that are no weights: {alien}")
        program.load_constants(
            {name: self._held[name] for name in names}, check_full_update=True, user_managed=True
        )
        return program


class TensorRTVelocity(Packaged):
    """Engines of torch-tensorrt. They hold weights of their own, refitted when the DiT's change.

    Written from the documentation of torch-tensorrt 2.13; not run on our machines.
    """

    mode = "tensorrt"
    DEVICE = "cuda"

    def __init__(self, dit: WanDiT, packages: Packages) -> None:
        self.trt = import_tensorrt()
        super().__init__(dit, packages)

    def _library(self) -> str:
        return f"torch_tensorrt {self.trt.__version__}"

    def _build(self, path: Path, call: Call) -> None:
        device = call.tensors[0].device
        if device.type != self.DEVICE:
            raise BackendError(f"compile mode 'tensorrt' needs a CUDA device, not {device}")
        inputs = list(call.tensors)
        built = self.trt.dynamo.compile(
            export(self.dit, call), arg_inputs=inputs, immutable_weights=False
        )
        self.trt.save(built, str(path), output_format="exported_program", arg_inputs=inputs)

    def _open(self, path: Path, call: Call) -> Any:
        return self.trt.load(str(path)).module()

    def _fit(self, program: Any, call: Call) -> Any:
        # After opening too: the engine may have been built from another checkpoint.
        return self.trt.dynamo.refit_module_weights(program, export(self.dit, call))


def import_tensorrt() -> Any:
    """The module `torch_tensorrt`; BackendError, with what to install, where it does not load."""
    try:
        return importlib.import_module("torch_tensorrt")
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendError(
            f"compile mode 'tensorrt' needs torch-tensorrt ({_first_line(error)}): "
            "pip install -e '.[gpu]', where there is a CUDA driver (see `troupe doctor`)"
        ) from error


def _kinds(held: dict[str, Tensor]) -> list[tuple[Any, ...]]:
    return [(name, tuple(w.shape), w.dtype, w.device) for name, w in held.items()]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
