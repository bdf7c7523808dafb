"""A run is its config and its seed: interruptions leave no trace in the bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import loop
from training.loop import LoopConfig, Outcome, rate_factor, run
from training.report import read_log
from training.state import Position

BASE = LoopConfig("toy", steps=20, lr=0.01, warmup=3, save_every_s=0.0, sheet_every=0, log_every=5)


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 16))


def batch_fn(index: int) -> Tensor:
    return torch.randn(8, 4)  # the loop seeds by index


def loss_fn(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    noise = torch.randn(8, 16)
    return {"loss": (net(batch) - noise).square().mean(), "noise": noise.mean()}


def same(a: Path, b: Path) -> bool:
    from safetensors.torch import load_file

    one, two = (load_file(p / "state" / "train.safetensors") for p in (a, b))
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def go(
    folder: Path, config: LoopConfig = BASE, batches: Callable[[int], Any] = batch_fn
) -> Outcome:
    return run(config, model(), loss_fn, batches, folder=folder)


class Killed(Exception):
    pass


@pytest.mark.parametrize("accumulate", [1, 3])
def test_ten_and_ten_steps_equal_twenty(tmp_path: Path, accumulate: int) -> None:
    config = LoopConfig(**{**vars(BASE), "accumulate": accumulate})

    def dies_at_ten(index: int) -> Tensor:
        if index == 10 * accumulate + accumulate - 1:
            raise Killed
        return batch_fn(index)

    whole = go(tmp_path / "whole", config)
    with pytest.raises(Killed):
        go(tmp_path / "parts", config, dies_at_ten)
    parts = go(tmp_path / "parts", config)
    assert whole.step == parts.step == 20 and whole.finished and parts.finished
    assert same(tmp_path / "whole", tmp_path / "parts")
    for p, q in zip(whole.ema.parameters(), parts.ema.parameters(), strict=True):
        assert torch.equal(p, q)


def test_prefetching_processes_change_nothing(tmp_path: Path) -> None:
    go(tmp_path / "plain")
    go(tmp_path / "ahead", LoopConfig(**{**vars(BASE), "prefetch": 2}))
    assert same(tmp_path / "plain", tmp_path / "ahead")


def test_accumulating_is_the_mean_over_batches(tmp_path: Path) -> None:
    def mean_loss(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": net(batch).square().mean()}

    net = nn.Linear(4, 4)
    start = [p.detach().clone() for p in net.parameters()]
    config = LoopConfig(
        "a", steps=1, accumulate=4, bf16=False, grad_clip=0, sheet_every=0, log_every=1
    )
    halves = [torch.randn(2, 4) for _ in range(4)]
    run(config, net, mean_loss, lambda i: halves[i], folder=tmp_path / "a")
    other = nn.Linear(4, 4)
    with torch.no_grad():
        for p, s in zip(other.parameters(), start, strict=True):
            p.copy_(s)
    config = LoopConfig("b", steps=1, bf16=False, grad_clip=0, sheet_every=0, log_every=1)
    run(config, other, mean_loss, lambda i: torch.cat(halves), folder=tmp_path / "b")
    torch.testing.assert_close(net.bias, other.bias)
    # The optimizers' first step is the same for gradients of any size: their norm tells.
    one, two = (read_log(tmp_path / name / "log.jsonl")[0] for name in ("a", "b"))
    assert one["loss"] == pytest.approx(two["loss"])
    assert one["grad_norm"] == pytest.approx(two["grad_norm"])


SCRIPT = """
    import sys, torch, time
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from test_loop import BASE, LoopConfig, batch_fn, loss_fn, model
    from training.loop import run
    def slow(index):
        time.sleep(0.05)
        return batch_fn(index)
    config = LoopConfig(**{{**vars(BASE), "save_every_s": {save!r}}})
    out = run(config, model(), loss_fn, slow, folder=Path({folder!r}))
    print("ended", out.step, out.finished)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_continues_exactly(tmp_path: Path, number: signal.Signals) -> None:
    here = str(Path(__file__).parent)
    save = 0.0 if number == signal.SIGKILL else 1000.0
    folder = tmp_path / "killed"
    code = textwrap.dedent(SCRIPT.format(tests=here, save=save, folder=str(folder)))
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    log = folder / "log.jsonl"
    while process.poll() is None and not (log.exists() and len(read_log(log)) >= 1):
        time.sleep(0.02)
    process.send_signal(number)
    process.wait(60)
    assert (folder / "state" / "train.safetensors").exists()
    resumed = go(folder)
    go(tmp_path / "whole")
    assert resumed.step == 20
    assert same(tmp_path / "whole", folder)
    assert [row["step"] for row in read_log(log)] == [5, 10, 15, 20]


def test_a_signal_returns_unfinished(tmp_path: Path) -> None:
    def asks(index: int) -> Tensor:
        if index == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch_fn(index)

    out = go(tmp_path, batches=asks)
    assert (out.step, out.finished) == (5, False)


def test_log_curves_sheets_evaluation_and_export(tmp_path: Path) -> None:
    seen: list[str] = []

    def sheet(net: nn.Module, path: Path) -> None:
        assert not net.training
        path.write_bytes(b"png")

    config = LoopConfig(**{**vars(BASE), "sheet_every": 10})
    run(
        config, model(), loss_fn, batch_fn, folder=tmp_path, sheet_fn=sheet,
        eval_fn=lambda net: {"quality": 1.0}, export_fn=lambda net, f: seen.append(str(f)),
    )  # fmt: skip
    assert sorted(p.name for p in (tmp_path / "sheets").iterdir()) == [
        "step_000010.png",
        "step_000020.png",
    ]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert seen == [str(tmp_path)]
    rows = read_log(tmp_path / "log.jsonl")
    assert {"loss", "noise", "grad_norm", "rate"} <= rows[0].keys()
    assert [row["step"] for row in rows if "quality" in row] == [10, 20]


def test_decay_can_be_asked_for(tmp_path: Path) -> None:
    def asks(index: int) -> Tensor:
        if index == 9:
            (tmp_path / "decay").touch()
        return batch_fn(index)

    out = go(tmp_path, LoopConfig(**{**vars(BASE), "steps": 1000, "decay_fraction": 0.5}), asks)
    assert (out.step, out.finished) == (15, True)  # asked at 10, then half as many again


def test_a_time_budget_ends_with_its_decay(tmp_path: Path) -> None:
    def slow(index: int) -> Tensor:
        time.sleep(0.02)
        return batch_fn(index)

    out = go(tmp_path, LoopConfig("t", minutes=1.5 / 60, log_every=1, sheet_every=0), slow)
    rates = [row["rate"] for row in read_log(tmp_path / "log.jsonl")]
    assert out.finished and min(rates[-5:]) < 0.5


def test_a_decay_that_takes_longer_than_planned_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its updates may cost more than those before: the rate still comes down to nothing."""
    now = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def dearer(index: int) -> Tensor:
        now[0] += 1.0 if index < 32 else 3.0  # a minute, half of it for the decay
        return batch_fn(index)

    config = LoopConfig("toy", minutes=1.0, decay_fraction=0.5, warmup=1, log_every=1)
    outcome = go(tmp_path, config, dearer)
    rates = [row["rate"] for row in read_log(tmp_path / "log.jsonl")]
    assert outcome.finished and outcome.step == len(rates) == 60
    assert rates[28] == 1.0 and rates[-1] < 0.05


def test_schedules() -> None:
    def at(step: int, **changes: Any) -> float:
        return rate_factor(LoopConfig(**{**vars(BASE), **changes}), Position(step=step))

    assert at(0) == pytest.approx(1 / 3) and at(5) == 1.0  # warm-up of three
    assert at(15) == 1.0 and at(19) == 0.0 and 0 < at(17) < 1  # last fifth decays
    assert at(19, schedule="constant") == 1.0
    assert at(20, schedule="cosine", final=0.1) == pytest.approx(0.1)
    assert rate_factor(BASE, Position(step=6, decay_start=5, decay_steps=4)) == pytest.approx(0.5)


def test_a_run_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        LoopConfig("endless")
    with pytest.raises(ValueError, match="schedule"):
        LoopConfig("odd", steps=1, schedule="linear")


def test_a_lost_run_says_so(tmp_path: Path) -> None:
    def broken(net: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        return {"loss": net(batch).sum() * float("inf")}

    with pytest.raises(FloatingPointError, match="toy"):
        run(LoopConfig(**{**vars(BASE), "steps": 99}), model(), broken, batch_fn, folder=tmp_path)
