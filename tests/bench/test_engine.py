"""The bench of the engine runs end to end at a tiny size, and compares what it says it compares."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bench import engine as bench
from engine.spec import Guidance

TINY = replace(
    bench.CONFIG, dim=48, ffn_dim=64, freq_dim=32, text_dim=20, text_len=10, num_heads=2,
    num_layers=3, subject_layers=2, subject_dim=48, vlm_dim=12,
)  # fmt: skip
GEOMETRY = bench.Geometry(frames=3, side=8, text_len=10, steps=2)


@pytest.fixture(autouse=True)
def _no_grad():  # noqa: ANN202
    with torch.no_grad():
        yield


def test_all_ratios_are_there_and_diffusers_agrees() -> None:
    result = bench.measure(TINY, 1, ["inductor"], GEOMETRY)
    assert set(result) == {
        "phantom_ratio", "equal_pass_ratio", "own_phantom", "overhead",
        "vs_diffusers", "compiled", "batch8_gain", "knee",
    }  # fmt: skip
    for name in ("phantom_ratio", "equal_pass_ratio", "own_phantom", "overhead"):
        assert set(result[name]) == {"1", "4"}
        assert all(0 < ratio["least"] <= ratio["most"] for ratio in result[name].values())
    assert result["vs_diffusers"]["max_abs_diff"] <= 1e-5
    same = [*result["compiled"].values(), *result["own_phantom"].values(), result["batch8_gain"]]
    assert all(0 <= ratio["max_abs_diff"] <= 1e-4 for ratio in same)
    assert "max_abs_diff" not in result["phantom_ratio"]["1"]  # another model: nothing to compare
    assert set(result["compiled"]) == {"inductor"}
    assert set(result["knee"]) == {"tokens"} | {
        f"{tokens}x{rows}" for tokens in (16, 320) for rows in (2, 4, 8, 16)
    }
    assert result["batch8_gain"] == result["knee"]["16x8"]
    assert len(list(bench.table(result).rows)) == 22


def test_the_knee_is_where_twice_the_requests_give_no_more() -> None:
    assert bench.knee({16: {2: 1.7, 4: 2.5, 8: 2.6, 16: 3.5}, 320: {2: 1.0, 4: 1.3}}) == 64
    assert bench.knee({16: {2: 1.7}, 320: {2: 1.1, 4: 1.1}}) == 640
    assert bench.knee({320: {2: 1.0}}) == 0


def test_a_batch_is_its_requests() -> None:
    one, many = bench.batch_pair(bench.model(TINY), bench.SMALL, 3)
    alone, rows = one(), many()
    assert isinstance(alone, torch.Tensor) and isinstance(rows, torch.Tensor) and len(rows) == 3
    torch.testing.assert_close(rows[:1], alone, rtol=1e-4, atol=1e-4)


def test_ratio_is_of_cpu_time_and_counts_every_round() -> None:
    x = torch.randn(200, 200)

    def work(times: int) -> bench.Work:
        return lambda: [x @ x for _ in range(times)]

    (ratio,) = bench.compare([(work(60), work(6))], rounds=7)
    assert ratio["least"] <= ratio["median"] <= ratio["most"]
    assert ratio["median"] > 3


def test_phantoms_step_on_diffusers_is_that_of_our_own_family() -> None:
    """The competitor is not a straw man: same weights, same result."""
    dit = bench.model(TINY)
    theirs = bench.phantom_step(bench.twin(dit), TINY, 2, GEOMETRY, passes=3)()
    ours = bench.our_step(dit, "phantom", 2, Guidance("dual"), GEOMETRY)()
    assert isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor)
    # Theirs also predicts the references' frames, which Phantom throws away.
    torch.testing.assert_close(ours, theirs[:, :, :3], rtol=1e-4, atol=1e-4)


def test_a_step_with_subjects_is_not_one_without() -> None:
    dit = bench.model(TINY)
    one, none = (bench.our_step(dit, "identity", n, bench.BOTH, GEOMETRY)() for n in (1, 0))
    assert not torch.allclose(one, none)  # type: ignore[arg-type]


def test_arguments_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(["--rounds", "0"])
    assert "--rounds" in capsys.readouterr().err
    for modes in ("nonsense", "aoti,aoti"):
        with pytest.raises(SystemExit):
            bench.arguments(["--compiled", modes])
        assert "--compiled" in capsys.readouterr().err
    assert bench.arguments(["--compiled", "inductor, aoti"]).compiled == ["inductor", "aoti"]
    assert bench.arguments(["--compiled", ""]).compiled == []
