"""Real processes over gloo for the tests of `engine.split` and `engine.parallel`."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
import torch.multiprocessing as mp

from engine.parallel import Parallel, Team, meet

TIMEOUT = timedelta(seconds=120)


def together(
    work: Callable[[Team], Any], text: str, size: int, folder: Path, timeout: timedelta = TIMEOUT
) -> list[Any]:
    """What `work` returns in each of `size` processes, None where it ended without returning."""
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_member, args=(work, text, rank, size, folder, timeout))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [folder / f"{rank}.pt" for rank in range(size)]
    return [torch.load(file) if file.is_file() else None for file in files]


def _member(
    work: Callable[[Team], Any],
    text: str,
    rank: int,
    size: int,
    folder: Path,
    timeout: timedelta,
) -> None:
    torch.set_num_threads(1)
    store = td.FileStore(str(folder / "store"), size)
    team = meet(Parallel.parse(text, size), store, rank, torch.device("cpu"), timeout)
    with torch.no_grad():
        found = work(team)
    torch.save(found, folder / f"{rank}.pt")
    team.leave()
