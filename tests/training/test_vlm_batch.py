import numpy as np
import torch

from training.vlm_batch import _lay_out, _rounded_up, patches_of

PAD = 7


def test_words_alone_count_up():
    row = _lay_out([1, 2, 3], PAD, ())
    assert row.ids == [1, 2, 3] and row.starts == []
    assert np.array_equal(row.positions_3L, np.tile(np.arange(3), (3, 1)))


def test_a_picture_is_written_out_and_words_go_on_from_its_longer_side():
    """Qwen2-VL's M-RoPE: time stands still, rows and columns count, then text continues."""
    row = _lay_out([1, PAD, 2], PAD, [(2, 3)])
    assert row.ids == [1] + [PAD] * 6 + [2] and row.starts == [1]
    time, rows, columns = row.positions_3L
    assert time.tolist() == [0] + [1] * 6 + [4]
    assert rows.tolist() == [0, 1, 1, 1, 2, 2, 2, 4]
    assert columns.tolist() == [0, 1, 2, 3, 1, 2, 3, 4]


def test_lengths_are_rounded_up_to_sixteen():
    assert [_rounded_up(n) for n in (1, 16, 17, 160)] == [16, 16, 32, 160]


def test_every_pixel_is_in_exactly_one_patch():
    pixels = torch.arange(32 * 48 * 3).view(1, 32, 48, 3).to(torch.uint8)
    patches = patches_of(pixels, patch=8, merge=2)
    assert patches.shape[-2] == (32 // 8) * (48 // 8)
    # A picture counts twice in time (upstream's temporal patch of two).
    assert patches.shape[-1] == 3 * 2 * 8 * 8
    flat = torch.zeros_like(pixels)
    assert not torch.equal(patches_of(pixels, 8, 2), patches_of(flat, 8, 2))
