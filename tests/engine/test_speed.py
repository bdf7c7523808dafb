"""The measured speed is that of products of matrices here, to an order of magnitude."""

import time

import torch

from engine.speed import SHARE, sustained


def test_it_is_a_share_of_what_products_reach():
    x_NN = torch.randn(1024, 1024)
    x_NN @ x_NN
    took_s = []
    for _ in range(20):
        begin = time.perf_counter()
        x_NN @ x_NN
        took_s.append(time.perf_counter() - begin)
    reached = 2 * 1024**3 / min(took_s)
    found = sustained(torch.device("cpu"), torch.float32)
    assert SHARE * reached / 10 < found < SHARE * reached * 10
