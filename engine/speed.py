"""How fast a machine computes, measured in a tenth of a second: for the first estimate of what a
video costs, before any was made here."""

import time

import torch

SHARE = 0.5  # of what large products reach, a transformer sustains about so much
LEAST_S = 0.1


def sustained(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs a second that a transformer in `dtype` will about sustain on `device`: a share of what
    products of square matrices reach, the best of several."""
    side = 4096 if device.type == "cuda" else 1024
    x_NN = torch.ones(side, side, dtype=dtype, device=device)
    best_s, end = float("inf"), time.monotonic() + LEAST_S
    while time.monotonic() < end or best_s == float("inf"):
        begin = time.perf_counter()
        sum_ = (x_NN @ x_NN)[0, 0].item()  # .item() waits for a card
        best_s = min(best_s, time.perf_counter() - begin)
        assert sum_ == side
    return SHARE * 2 * side**3 / best_s
