"""Processes that train together; FSDP2 on two CPU processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from training import dist


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))


def test_a_lone_process_is_a_group_of_one() -> None:
    group = dist.current()
    assert (group.rank, group.size, group.is_first) == (0, 1, True)
    tensor = torch.ones(3)
    group.average_([tensor])
    assert group.from_first([1.5]) == [1.5] and tensor.tolist() == [1, 1, 1]


def _talk(folder: Path) -> None:
    group = dist.current()
    tensors = [torch.full((2,), float(group.rank)), torch.full((1, 3), 10.0 * group.rank)]
    group.average_(tensors)
    heard = group.from_first([float(group.rank + 7)])
    copied = [torch.full((2,), float(group.rank))]
    group.same_weights_(copied)
    torch.save([*tensors, *copied, torch.tensor(heard)], folder / f"{group.rank}.pt")


def test_average_decisions_and_weights_are_shared(tmp_path: Path) -> None:
    dist.launch(partial(_talk, tmp_path), 2)
    for rank in range(2):
        first, second, copied, heard = torch.load(tmp_path / f"{rank}.pt")
        assert first.tolist() == [0.5, 0.5] and second.tolist() == [[5.0, 5.0, 5.0]]
        assert copied.tolist() == [0.0, 0.0] and heard.tolist() == [7.0]
    assert dist.current().size == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cards_tensors_of_either_device_are_exchanged(tmp_path: Path) -> None:
    meeting = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group(
        dist.ON_CARDS, init_method=meeting, rank=0, world_size=1
    )
    try:
        group = dist.Group(0, 2)  # it says two, or nothing would be exchanged
        for device in ("cpu", "cuda"):
            tensor = torch.ones(3, device=device)
            group.same_weights_([tensor])
            group.average_([tensor])
            assert tensor.tolist() == [0.5] * 3
        assert group.from_first([1.5]) == [1.5]
        group.wait()
    finally:
        torch.distributed.destroy_process_group()


def _fails() -> None:
    dist.current().wait()
    if dist.current().rank == 1:
        raise SystemExit(3)


def test_a_failed_process_is_told() -> None:
    with pytest.raises(RuntimeError, match="3"):
        dist.launch(_fails, 2)


def _sharded_step(folder: Path) -> None:
    from torch.distributed.tensor import DTensor

    group = dist.current()
    torch.manual_seed(1)
    batches = torch.randn(2, 5, 4)
    model = small()
    dist.shard(model, [model[0], model[2]], bf16=False)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(batches[group.rank]).square().mean().backward()
    optimizer.step()
    whole = {n: p.full_tensor() for n, p in model.state_dict().items()}
    if group.is_first:
        torch.save(whole, folder / "sharded.pt")


def test_fsdp_equals_one_process(tmp_path: Path) -> None:
    dist.launch(partial(_sharded_step, tmp_path), 2)
    torch.manual_seed(1)
    batches = torch.randn(2, 5, 4)
    model = small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(model(batch).square().mean() / 2 for batch in batches).backward()
    optimizer.step()
    sharded = torch.load(tmp_path / "sharded.pt")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(sharded[name], tensor, rtol=1e-4, atol=1e-4)
