"""What a plan counts of Qwen2.5-VL is what its own forward does on real tensors."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from engine.meter import metered
from engine.plan_vlm import PROMPT_TOKENS, patches, read, vlm_tokens
from engine.presets import MINIATURE, WAN_1_3B, WAN_14B
from engine.vlm import SPECIALS, build_processor, build_vlm
from tests.engine.conftest import byte_tokenizer

CONFIG = MINIATURE.vlm
IDS = {name: number for number, name in enumerate(SPECIALS)}


def turn(num: int, height: int, width: int) -> dict[str, Any]:
    """Inputs of the whole model: a prompt and pictures, as long as a plan takes them to be."""
    rows, columns = patches(CONFIG, height, width)
    each = rows * columns // CONFIG.merge_size**2
    ids = torch.full((1, vlm_tokens(CONFIG, num, height, width)), len(SPECIALS))
    for number in range(num):
        first = 3 + number * (each + 1)
        ids[0, first : first + each] = IDS["<|image_pad|>"]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(num * rows * columns, 3 * 2 * CONFIG.patch_size**2),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * num),
        "mm_token_type_ids": (ids == IDS["<|image_pad|>"]).int(),
    }


@pytest.mark.parametrize(("num", "height", "width"), [(1, 64, 64), (3, 64, 64), (2, 96, 128)])
def test_the_count_is_that_of_its_own_forward(num: int, height: int, width: int) -> None:
    """FLOPs to the last one, as torch's counter has them; bytes within 2 %: its tests of where
    pictures stand are left out."""
    model: Any = build_vlm(CONFIG, IDS).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.model(**turn(num, height, width))
    real = metered(lambda: model.model(**turn(num, height, width)))
    with torch.device("meta"):
        empty = build_vlm(CONFIG, IDS)
    counted = metered(lambda: read(empty, CONFIG, num, height, width))
    assert counted.total == counter.get_total_flops() == real.total
    assert counted.peak_bytes == pytest.approx(real.peak_bytes, rel=0.02)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (16, 16), (480, 832), (200, 40)])
def test_pictures_are_of_the_processors_size(height: int, width: int) -> None:
    processor = build_processor(CONFIG, byte_tokenizer(list(SPECIALS)))
    given = processor.image_processor(Image.new("RGB", (width, height)), return_tensors="pt")
    assert tuple(given["image_grid_thw"][0].tolist()) == (1, *patches(CONFIG, height, width))


def test_a_prompt_has_the_room_that_pictures_leave() -> None:
    assert vlm_tokens(WAN_1_3B.vlm, 2, 480, 832) == 2 * 17 * 30 + PROMPT_TOKENS
    assert vlm_tokens(CONFIG, 1, 64, 64) == CONFIG.vlm_len
    # Pictures are not cut: four of 720p are more than vlm_len.
    assert vlm_tokens(WAN_14B.vlm, 4, 720, 1280) == 4 * 26 * 46 + 8
