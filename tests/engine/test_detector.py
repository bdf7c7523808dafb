"""Peaks become boxes, and whom it finds is cut out."""

import torch

from engine.crops import cut, squares, to_unit
from engine.detector import STRIDE, Detector, decode, find


def test_network_takes_any_multiple_of_sixteen() -> None:
    net = Detector().eval()
    for height, width in ((64, 96), (32, 48)):
        assert net(torch.zeros(1, 3, height, width)).shape == (1, 5, height // 4, width // 4)


def test_a_peak_is_a_box_around_its_cell() -> None:
    maps = torch.full((1, 5, 16, 24), -9.0)
    maps[:, 1:] = 0.0
    maps[0, 0, 5, 7] = 9.0
    maps[0, 3:, 5, 7] = torch.tensor([4.0, 6.0]).log()
    found = decode(maps)
    assert (found.score_NK > 0).sum() == 1
    x, y = 7.5 * STRIDE, 5.5 * STRIDE
    wanted = torch.tensor([x - 2 * STRIDE, y - 3 * STRIDE, x + 2 * STRIDE, y + 3 * STRIDE])
    assert torch.allclose(found.boxes_NKS[0, 0], wanted)


class Pointing(Detector):
    """Finds one character in frame 0, two in frame 1 and nobody in frame 2."""

    def forward(self, frames_NCHW: torch.Tensor) -> torch.Tensor:
        maps = torch.full((len(frames_NCHW), 5, 16, 24), -9.0)
        maps[:, 1:3], maps[:, 3:] = 0.0, 1.5
        maps[0, 0, 8, 4] = maps[1, 0, 8, 4] = 3.0
        maps[1, 0, 8, 16] = 5.0
        return maps


def test_crops_are_of_the_boxes_frame_by_frame() -> None:
    frames = torch.randint(0, 256, (3, 64, 96, 3), dtype=torch.uint8)
    found = find(Pointing(), frames)
    assert found.real_TD.tolist() == [[True, False], [True, True], [False, False]]
    # Best first: in frame 1 that is the right one.
    assert found.boxes_TDK[1, 0, 0] > found.boxes_TDK[1, 1, 0]
    boxes = found.boxes_TDK[found.real_TD]
    assert torch.equal(found.crops_NCHW, cut(to_unit(frames)[[0, 1, 1]], squares(boxes)))
    assert find(Pointing(), frames, most=1).real_TD.shape == (3, 1)


def test_nobody_is_no_crops() -> None:
    frames = torch.zeros(1, 64, 96, 3, dtype=torch.uint8)
    silent = Detector().eval()
    silent.head[-1].bias[0] = -50.0
    found = find(silent, frames)
    assert found.crops_NCHW.shape == (0, 3, 48, 48)
    assert found.real_TD.tolist() == [[False]]
