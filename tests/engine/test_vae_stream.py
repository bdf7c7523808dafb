"""The decoder's stream and its tiles: equal to diffusers' whole decode, flat in the length."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from engine import vae_stream
from engine.errors import BackendError
from engine.meter import metered
from engine.presets import MINIATURE, WAN_1_3B, WAN_14B, VAEConfig
from engine.vae import VAE, build_vae
from engine.vae_stream import grid, reach, work

# Wan 2.1's shape and the miniature's, which is Wan 2.2's (is_residual), with few channels.
WAN = replace(WAN_1_3B.vae, base_dim=2, z_dim=4, num_res_blocks=1)
MINI = replace(MINIATURE.vae, base_dim=2, z_dim=4)
BOTH = pytest.mark.parametrize("config", [WAN, MINI], ids=["wan", "miniature"])


def random_vae(config: VAEConfig, max_cells: int = 0) -> VAE:
    torch.manual_seed(0)
    return VAE(build_vae(config), torch.randn(4), torch.rand(4) + 0.5, config, max_cells)


def strip(config: VAEConfig) -> tuple[tuple[int, int], int]:
    """Rows and columns of a frame low and wide, and the limit that cuts it into two tiles."""
    margin = reach(config)
    return (3, 2 * margin + 5), 3 * (2 * margin + 3)


def whole(vae: VAE, z: torch.Tensor) -> torch.Tensor:
    """diffusers' own decode."""
    raw = (z * vae.std + vae.mean).to(vae.model.dtype)
    pixels: torch.Tensor = vae.model.decode(raw).sample.float()
    return pixels


@BOTH
@pytest.mark.parametrize("num_frames", [1, 2, 4])
def test_a_stream_is_the_whole_decode_frame_by_frame(config: VAEConfig, num_frames: int) -> None:
    vae = random_vae(config)
    z = torch.randn(2, 4, num_frames, 3, 5)
    chunks = list(vae.stream(z))
    assert [chunk.shape[2] for chunk in chunks] == [1, 4, 4, 4][:num_frames]
    assert torch.equal(torch.cat(chunks, dim=2), whole(vae, z))
    assert torch.equal(vae.decode(z), whole(vae, z))


@BOTH
@pytest.mark.parametrize("in_tiles", [False, True])
def test_streams_read_in_turns_do_not_mix(config: VAEConfig, in_tiles: bool) -> None:
    size, limit = strip(config)
    vae = random_vae(config, limit if in_tiles else 0)
    a, b = torch.randn(2, 1, 4, 3, *size).unbind()
    alone = [vae.decode(z) for z in (a, b)]
    pairs = list(zip(vae.stream(a), vae.stream(b), strict=True))
    for wanted, chunks in zip(alone, zip(*pairs, strict=True), strict=True):
        assert torch.equal(torch.cat(chunks, dim=2), wanted)


def test_a_stream_that_is_dropped_leaves_nothing_behind() -> None:
    vae = random_vae(MINI)
    z = torch.randn(1, 4, 3, 4, 4)
    wanted = whole(vae, z)
    next(vae.stream(torch.randn(1, 4, 3, 4, 4)))
    assert torch.equal(vae.decode(z), wanted) and torch.equal(whole(vae, z), wanted)


@BOTH
@pytest.mark.parametrize("way", ["wide", "high", "both"])
def test_tiles_give_the_numbers_of_the_whole_frame(config: VAEConfig, way: str) -> None:
    """Over more than one turn. In fp64, since a convolution sums in another order at another size,
    which random weights make much of; the upsampling in between rounds to fp32."""
    (short, long), limit = strip(config)
    size = {"wide": (short, long), "high": (long, short), "both": (long - 3, long - 3)}[way]
    num_frames = 2 if way == "both" else vae_stream.TURN + 2
    if way == "both":
        limit = (long - 4) ** 2
    assert len(grid(*size, reach(config), limit)) == (4 if way == "both" else 2)
    vae = random_vae(config, limit)
    vae.model.double()
    z = torch.randn(1, 4, num_frames, *size)
    torch.testing.assert_close(vae.decode(z), whole(vae, z), rtol=0, atol=1e-5)


@BOTH
def test_reach_is_as_far_as_the_tail_sees(config: VAEConfig) -> None:
    """Features changed beyond it move no pixel; the nearest ones within it do."""
    model, margin = random_vae(config).model.double(), reach(config)
    width = 2 * margin + 3
    x = torch.randn(1, model.decoder.conv_in.out_channels, 1, 2, width, dtype=torch.float64)
    scale, middle = config.spatial_factor, margin + 1

    def pixels(changed: int) -> torch.Tensor:
        y = x.clone()
        y[..., changed] += 100
        frames = vae_stream._tail(model, y, vae_stream.Memory(), True)
        return frames[..., middle * scale : (middle + 1) * scale]

    same = pixels(0)
    assert torch.equal(same, pixels(width - 1))
    for side in (-1, 1):
        moved = pixels(middle + side * margin)
        assert not torch.equal(same, moved)


def test_reach_of_the_published_decoders() -> None:
    assert (reach(WAN_14B.vae), reach(MINIATURE.vae)) == (13, 8)


@pytest.mark.parametrize("max_cells", [729, 1000, 2500, 5000])
def test_tiles_cover_every_cell_once_and_keep_the_limit(max_cells: int) -> None:
    seen = torch.zeros(90, 160)
    for rows, columns in grid(90, 160, 13, max_cells):
        seen[rows.place(1), columns.place(1)] += 1
        assert (rows.stop - rows.start) * (columns.stop - columns.start) <= max_cells
        for side, size in ((rows, 90), (columns, 160)):
            assert side.start == max(side.low - 13, 0) and side.stop == min(side.high + 13, size)
    assert torch.equal(seen, torch.ones(90, 160))


def test_no_limit_is_one_tile_and_a_larger_limit_less_work() -> None:
    assert grid(90, 160, 13) == grid(90, 160, 13, 14400) == [((0, 0, 90, 90), (0, 0, 160, 160))]
    done = [work(grid(90, 160, 13, max_cells)) for max_cells in (14400, 8192, 4096, 2048)]
    assert done == sorted(done) and done[0] == 14400 and done[2] < 2 * 14400


def test_tiles_below_the_smallest_are_refused() -> None:
    vae = random_vae(WAN, max_cells=360)
    with pytest.raises(BackendError, match="tile=360: .* 9 beyond .* 361 or more"):
        next(vae.stream(torch.zeros(1, 4, 1, 40, 40)))


@pytest.mark.parametrize(("in_tiles", "enough"), [(False, 3), (False, 5), (True, 9)])
def test_memory_is_flat_in_the_length(in_tiles: bool, enough: int) -> None:
    """Bytes alive at once while frames are taken and dropped: counted, on real tensors. It takes
    three latent frames, or two turns of all tiles, until every memory is full."""
    size, limit = strip(MINI)
    vae = random_vae(MINI, limit if in_tiles else 0)

    def peak(num_frames: int) -> int:
        z = torch.zeros(1, 4, num_frames, *size)
        return metered(lambda: [chunk.shape for chunk in vae.stream(z)]).peak_bytes

    assert peak(1) < peak(enough) == peak(21)


def test_memory_of_the_whole_decode_is_not() -> None:
    """What the test above would see if the stream kept what it gave."""
    vae, (size, _) = random_vae(MINI), strip(MINI)
    five, many = (
        metered(partial(whole, vae, torch.zeros(1, 4, num, *size))).peak_bytes for num in (5, 21)
    )
    assert many > 1.2 * five
