"""The training loop that every recipe runs: batches in, weights, curves and sheets out.

A run that is killed and started again continues with the bits that it would have had. SIGTERM and
SIGINT save and return; SIGKILL loses what came after the last save. A file called `decay` in the
run's folder asks for the final decay of the learning rate now.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.decay import decay_window, is_decaying, rate_factor
from training.dist import Group, current, whole
from training.optim import NOT_HIDDEN, OptimConfig
from training.report import Report
from training.state import TrainState
from training.stream import BatchFn, batches, seed_for

LossFn = Callable[[nn.Module, Any], dict[str, Tensor]]
SheetFn = Callable[[nn.Module, Path], None]
EvalFn = Callable[[nn.Module], dict[str, float]]
ExportFn = Callable[[nn.Module, Path], None]
Around = Callable[[nn.Module], AbstractContextManager[None]]


@dataclass(frozen=True)
class LoopConfig:
    """One run. `steps` or `minutes` (of training, over all resumes) must end it; a
      decay that has begun is finished, though its updates take longer than those before.

    schedule: "wsd" warm-up, stable, then linear decay over the last `decay_fraction`;
      "cosine" from warm-up to the end; "constant". The floor is `final` times the rate.
    accumulate: batches per update. Batch indices of update n are n*accumulate*processes + 0, 1, …
    prefetch: worker processes that call `batch_fn` ahead of time; 0 calls it in the loop.
    save_every_s, sheet_every (updates), log_every (updates): 0 switches sheets off.
    """

    name: str
    steps: int | None = None
    minutes: float | None = None
    lr: float = 1e-3
    muon_lr: float | None = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    not_hidden: str = NOT_HIDDEN
    warmup: int = 20
    schedule: str = "wsd"
    decay_fraction: float = 0.2
    final: float = 0.0
    ema: float = 0.997
    grad_clip: float = 1.0
    accumulate: int = 1
    bf16: bool = True
    device: str = "cpu"
    seed: int = 0
    prefetch: int = 0
    save_every_s: float = 60.0
    sheet_every: int = 500
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.schedule not in ("wsd", "cosine", "constant"):
            raise ValueError(f"schedule must be wsd, cosine or constant, not {self.schedule!r}")
        if self.steps is None and (self.minutes is None or self.schedule == "cosine"):
            raise ValueError("a run needs steps, or minutes with a schedule that is not cosine")

    def optim(self) -> OptimConfig:
        names = ("lr", "muon_lr", "betas", "weight_decay", "not_hidden")
        return OptimConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Outcome:
    """What `run` returns: `finished` is False when a signal ended it before its time."""

    model: nn.Module
    ema: nn.Module
    step: int
    finished: bool


class _Stop:
    """SIGTERM and SIGINT become a flag while a run is on; the old handlers return after it."""

    def __init__(self) -> None:
        self.asked = False
        self.old: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            self.old[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    """The parts of a run in progress, so that its phases can be functions of their own."""

    config: LoopConfig
    folder: Path
    state: TrainState
    group: Group
    report: Report
    sharded: bool = False
    around: Around | None = None
    saved_at: float = 0.0
    skipped: int = 0

    @property
    def pointer(self) -> Path:
        """Sharded: a file that names the step whose slices are all on disk."""
        return self.folder / "state" / "complete"

    def state_file(self, step: int) -> Path:
        """One file for the run; sharded, one for each process and saved step."""
        if not self.sharded:
            return self.folder / "state" / "train.safetensors"
        name = f"step_{step}-{self.group.rank}_of_{self.group.size}.safetensors"
        return self.folder / "state" / name

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if self.group.is_first:
            self.report.flush()
        if self.sharded:
            self._save_slices()
        elif self.group.is_first:
            self.state.save(self.state_file(0))

    def _save_slices(self) -> None:
        """The pointer moves when all have written; then each drops its older slices."""
        mine = self.state_file(self.state.position.step)
        self.state.save(mine)
        self.group.wait()
        if self.group.is_first:
            draft = self.pointer.with_suffix(".tmp")
            draft.write_text(str(self.state.position.step))
            draft.replace(self.pointer)
        self.group.wait()
        for old in mine.parent.glob(f"step_*-{self.group.rank}_of_{self.group.size}.safetensors"):
            if old != mine:
                old.unlink()

    def resume(self) -> bool:
        if self.sharded and not self.pointer.exists():
            return False
        step = int(self.pointer.read_text()) if self.sharded else 0
        found = self.state.resume(self.state_file(step))
        if self.sharded and not found:
            raise ValueError(f"{self.folder}: saved by another number of processes")
        return found


def update(run: _Run, batches: Iterator[Any], loss_fn: LossFn) -> dict[str, float]:
    """One optimizer step over `accumulate` batches on each process; means of what the loss says."""
    config, state = run.config, run.state
    values: dict[str, Tensor] = {}
    state.optimizer.zero_grad()
    decays = is_decaying(config, state.position)
    with run.around(state.model) if run.around and decays else nullcontext():
        for _ in range(config.accumulate):
            index, batch = next(batches)
            seed_for(config.seed, index)
            with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
                parts = loss_fn(state.model, batch)
            (parts["loss"] / config.accumulate).backward()
            for name, value in parts.items():
                share = value.detach().float().mean() / config.accumulate
                values[name] = values[name] + share if name in values else share
    parameters = state.optimizer.parameters()
    _same_gradients(run, parameters, values)
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or float("inf")))
    factor = rate_factor(config, state.position)
    if _is_usable(run, norm):
        state.optimizer.step(factor)
    state.position.step += 1
    state.update_ema(config.ema)
    scalars = {name: float(value) for name, value in values.items()}
    return scalars | {"grad_norm": float(norm), "rate": factor}


def _same_gradients(run: _Run, parameters: list[Tensor], values: dict[str, Tensor]) -> None:
    if run.group.size == 1:
        return
    if run.sharded:  # FSDP has averaged the gradients on their way
        run.group.average_(list(values.values()))
        return
    for parameter in parameters:  # a branch that one process's batch did not touch still counts
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [p.grad for p in parameters if p.grad is not None]
    run.group.average_(grads + list(values.values()))


def _is_usable(run: _Run, norm: Tensor) -> bool:
    """A step with an infinite gradient is left out; twenty in a row mean that the run is lost."""
    if torch.isfinite(norm):
        run.skipped = 0
        return True
    run.skipped += 1
    if run.skipped >= 20:
        raise FloatingPointError(f"{run.config.name}: no finite gradient for 20 steps")
    return False


def _plan_end(run: _Run, num_done: int, elapsed_s: float) -> None:
    """Start the final decay on request, or when the rest of the time budget is just its length."""
    config, position = run.config, run.state.position
    if position.decay_start is not None or config.schedule != "wsd":
        return
    request = run.folder / "decay"
    if request.exists():
        position.decay_start = position.step
        position.decay_steps = max(1, round(position.step * config.decay_fraction))
        return
    if config.minutes is None or config.steps is not None or num_done < 3:
        return
    budget_s = 60 * config.minutes
    left_s = budget_s - position.elapsed_s
    if left_s <= config.decay_fraction * budget_s:
        position.decay_start = position.step
        position.decay_steps = max(1, int(left_s / (elapsed_s / num_done)))


def _is_over(run: _Run) -> bool:
    config, position = run.config, run.state.position
    if position.decay_start is not None:  # its updates may be dearer than those it was planned by
        return position.step >= position.decay_start + position.decay_steps
    if config.minutes is not None and position.elapsed_s >= 60 * config.minutes:
        return True
    return config.steps is not None and position.step >= config.steps


def _agree(run: _Run, stop: bool) -> tuple[bool, bool]:
    """All processes take the first one's clock and decay; returns its (stop now?, save now?)."""
    position = run.state.position
    due = time.monotonic() - run.saved_at >= run.config.save_every_s
    start = -1.0 if position.decay_start is None else float(position.decay_start)
    told = [float(stop), float(due), position.elapsed_s, start, float(position.decay_steps)]
    stop_, due_, elapsed_s, start, length = run.group.from_first(told)
    position.elapsed_s = elapsed_s
    position.decay_start = None if start < 0 else int(start)
    position.decay_steps = int(length)
    return bool(stop_), bool(due_)


def _reopen(run: _Run) -> None:
    """A run whose decay was finished, started again with more steps: back to the full rate."""
    position, steps = run.state.position, run.config.steps
    if position.decay_start is None or steps is None:
        return
    ended = position.step >= position.decay_start + position.decay_steps
    if ended and steps > position.step:
        (run.folder / "decay").unlink(missing_ok=True)
        run.state.position = replace(position, decay_start=None, decay_steps=0)


def _begin(
    config: LoopConfig,
    model: nn.Module,
    folder: Path,
    shard: Callable[[nn.Module], object] | None,
) -> _Run:
    group = current()
    group.same_weights_(tensor.detach() for tensor in model.parameters())
    # Sharded, it goes to the cards part by part: whole, and with its average, it would not fit.
    placed = model if shard is not None else model.to(config.device)
    state = TrainState.begin(placed, config.optim(), shard)
    report = Report(folder, config.name, group.is_first)
    run = _Run(config, folder, state, group, report, sharded=shard is not None)
    if run.resume():
        _reopen(run)
    run.report.begin(state.position.step, config.steps)
    run.saved_at = time.monotonic()
    return run


def _look(run: _Run, sheet_fn: SheetFn | None, eval_fn: EvalFn | None) -> None:
    """Sheet, evaluation and curves from the EMA model; one process is enough, unless sharded."""
    if not run.group.is_first and not run.sharded:
        return
    step = run.state.position.step
    with torch.no_grad():
        if eval_fn is not None:
            run.report.note(step, eval_fn(run.state.ema))
        if sheet_fn is not None:
            path = run.folder / "sheets" / f"step_{step:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet_fn(run.state.ema, path)
    run.report.draw()


def _steps(
    run: _Run, loss_fn: LossFn, batch_fn: BatchFn, look: Callable[[], None], stop: _Stop
) -> bool:
    """Updates until the end or a stop; True when the run came to its end."""
    config, position = run.config, run.state.position
    ahead = batches(config, batch_fn, position.step, run.group)
    num_done, spent_s, mark = 0, 0.0, time.monotonic()
    while not _is_over(run):
        begun = time.monotonic()
        run.state.model.train()
        values = update(run, ahead, loss_fn)
        now = time.monotonic()
        took_s = now - begun
        # The budget counts saves, sheets and waiting for batches too: it is the wall's clock.
        num_done, spent_s = num_done + 1, spent_s + now - mark
        position.elapsed_s += now - mark
        mark = now
        _plan_end(run, num_done, spent_s)
        stopping, due = _agree(run, stop.asked)
        run.report.add(position.step, values, took_s, config.log_every, _left(run))
        # The end has a look of its own.
        if config.sheet_every and position.step % config.sheet_every == 0 and not _is_over(run):
            look()
        if stopping:
            return False
        if due:
            run.save()
    return True


def _left(run: _Run) -> int | None:
    """Updates still to come, as far as it is known."""
    position, steps = run.state.position, run.config.steps
    begin, length = decay_window(run.config, position)
    if run.config.schedule == "wsd" and begin is not None:
        steps = begin + length
    return None if steps is None else steps - position.step


def run(
    config: LoopConfig,
    model: nn.Module,
    loss_fn: LossFn,
    batch_fn: BatchFn,
    *,
    sheet_fn: SheetFn | None = None,
    eval_fn: EvalFn | None = None,
    export_fn: ExportFn | None = None,
    folder: Path | None = None,
    shard: Callable[[nn.Module], object] | None = None,
    around: Around | None = None,
) -> Outcome:
    """Train `model` in place; the same call after any interruption continues it.

    loss_fn(model, batch) -> {"loss": scalar, …}; every entry is logged.
    batch_fn(index) -> batch, a function of the index (torch's generator is seeded before it).
    sheet_fn(ema_model, path.png), eval_fn(ema_model) -> numbers: every `sheet_every` updates.
    export_fn(ema_model, folder): after every end, of its own accord or by a signal.
    folder: default runs/<name>; holds state/, sheets/, log.jsonl, curves.png.
    shard: applied to the model and to its EMA, see `dist.shard`; with it the functions that look
        at the EMA run in every process, for a sharded module moves only in all at once.
    around: a context for the forward and backward of each update while the rate decays.
    """
    begun = _begin(config, model, folder or Path("runs") / config.name, shard)
    begun.around = around
    with _Stop() as stop, begun.report:
        finished = _steps(
            begun, loss_fn, batch_fn, lambda: _look(begun, sheet_fn, eval_fn), stop
        )
        begun.save()
        if finished:
            _look(begun, sheet_fn, eval_fn)
    if export_fn is not None and (begun.group.is_first or begun.sharded):
        with torch.no_grad():
            export_fn(begun.state.ema, begun.folder)
    return Outcome(model, begun.state.ema, begun.state.position.step, finished)
