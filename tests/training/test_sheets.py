import torch

from training.sheets import sheet
from training.world.clip import sample_clip


def test_a_sheet_has_a_row_for_every_clip_with_truth_and_made_side_by_side():
    clips = [sample_clip(seed, split="heldout") for seed in range(2)]
    made = torch.stack([torch.from_numpy(clip.frames) for clip in clips])
    one, two = sheet(made[:1], clips[:1]), sheet(made, clips)
    assert two.height > one.height and two.width >= one.width
    colors = two.resize((40, 20)).getcolors(1000)
    assert colors is not None and len(colors) > 50
