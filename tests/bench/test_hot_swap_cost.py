"""What an exchange costs, measured on small models."""

from pathlib import Path

from bench import hot_swap_cost, tiny


def test_an_exchange_is_shorter_than_a_step_of_what_it_exchanges(tmp_path: Path) -> None:
    found = hot_swap_cost.pause(tiny.base(tmp_path / "m"), times=2, steps=2)
    assert 0 < found["exchange_s"] <= found["exchange_most_s"]
    assert found["pause_steps"] > 0 and found["tried_steps"] > 0


def test_the_peak_is_the_weights_and_one_file() -> None:
    """A transformer of 22 MB, where what else a process does is a part of the peak."""
    found = hot_swap_cost.rss(dim=512, layers=3)
    assert found["peak_mb"] > found["before_mb"] > found["weights_mb"] > found["shard_mb"] > 10
    assert found["rss_ratio"] <= 1.1


def test_adapters_that_lie_ready(tmp_path: Path) -> None:
    found = hot_swap_cost.ready(tiny.base(tmp_path / "m"), times=6, rank=2)
    assert 0 < found["adapter_ms"] <= found["adapter_most_ms"] and found["adapters_mb"] > 0
