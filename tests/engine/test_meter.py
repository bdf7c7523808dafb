"""The meter counts FLOPs and the bytes alive, as they come and go."""

import torch

from engine.meter import metered


def test_a_product_counts_two_per_multiply_add_and_holds_its_output() -> None:
    a, b = torch.empty(3, 5, device="meta"), torch.empty(5, 7, device="meta")
    cost = metered(lambda: a @ b)
    assert cost.total == 2 * 3 * 5 * 7 and cost.peak_bytes == 3 * 7 * 4


def test_memory_is_what_is_alive_at_once() -> None:
    a = torch.empty(1000, device="meta")

    def chain() -> torch.Tensor:
        b = a + 1  # gone when c is there
        c = b.view(10, 100) + 1
        del b
        return c + 1

    assert metered(chain).peak_bytes == 2 * 4000


def test_attention_counts_as_one_kernel() -> None:
    q, kv = torch.empty(1, 2, 6, 4, device="meta"), torch.empty(1, 2, 10, 4, device="meta")
    cost = metered(lambda: torch.nn.functional.scaled_dot_product_attention(q, kv, kv))
    assert cost.flops == {"attention": 2 * 2 * 6 * 10 * 8} and cost.peak_bytes == q.numel() * 4


def test_what_takes_the_place_of_an_input_that_is_gone_counts() -> None:
    def work() -> torch.Tensor:
        kept = []
        for _ in range(8):
            torch.tensor([1.0])  # made out of the meter's sight, as inputs are
            kept.append(torch.empty(1000))
        return torch.cat(kept)

    assert metered(work).peak_bytes == 2 * 8 * 4000
