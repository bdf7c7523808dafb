import torch

from training.sheets import sheet
from training.world.clip import sample_clip


def test_a_sheet_has_a_row_for_every_clip_with_truth_and_made_side_by_side():
    made = torch.stack([torch.from_numpy(sample_clip(s, split="heldout").frames) for s in range(2)])
    one, two = sheet(made[:1]), sheet(made)
    assert two.height > one.height and two.width >= one.width
    colors = two.resize((40, 20)).getcolors(1000)
    assert colors is not None and len(colors) > 50
