import numpy as np
import torch

from engine.presets import VAEConfig
from training import vae as recipe
from training.loop import LoopConfig, run

TINY = VAEConfig(8, 4, (1, 2, 2), 1, (True, True), True)


def test_batches_are_a_function_of_their_index():
    a, b, c = recipe.batch_fn(3), recipe.batch_fn(3), recipe.batch_fn(4)
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["clips"], c["clips"])
    assert a["clips"].shape == (2, 3, 17, 64, 64) and a["pictures"].shape[2] == 1
    assert float(a["clips"].min()) >= -1 and float(a["clips"].max()) <= 1


def test_characters_weigh_more_and_the_mean_is_one():
    weights = recipe.batch_fn(1)["weights"]
    assert torch.allclose(weights.mean(dim=(1, 2, 3, 4)), torch.ones(2), atol=1e-5)
    for weight in weights:
        ratio = float(weight.max() / weight.min())
        assert abs(ratio - recipe.SUBJECT_WEIGHT) < 1e-4


def test_loss_is_zero_only_for_the_picture_itself():
    x = torch.rand(1, 3, 5, 8, 8)
    weight = torch.ones(1, 1, 5, 8, 8)
    assert float(recipe.reconstruction_loss(x, x, weight)) == 0
    shifted = recipe.reconstruction_loss(x + 0.1, x, weight)
    assert np.isclose(float(shifted), 0.1, atol=1e-6)  # grey, constant: no colour, no slope


def test_psnr_closed_form():
    x = torch.zeros(2, 3)
    assert np.isclose(float(recipe.psnr(x + 0.2, x)), 10 * np.log10(4 / 0.04), atol=1e-4)


def test_some_steps_lower_the_loss_and_export_measures_the_latents(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    monkeypatch.setattr(recipe, "_compiled_round_trip", recipe._round_trip)
    monkeypatch.setattr(recipe, "batch_fn", lambda index: recipe_batch)
    recipe_batch = {
        "clips": torch.rand(1, 3, 5, 16, 16) * 0.3 + 0.4,
        "weights": torch.ones(1, 1, 5, 16, 16),
        "pictures": torch.rand(1, 3, 1, 16, 16) * 0.3,
    }
    torch.manual_seed(0)
    config = LoopConfig("tiny", steps=25, lr=3e-3, bf16=False, sheet_every=0, log_every=1)
    model = recipe.build(TINY)
    before = float(recipe.loss_fn(model, recipe_batch)["loss"].detach())
    run(config, model, recipe.loss_fn, recipe.batch_fn, export_fn=recipe.export_fn, folder=tmp_path)
    after = float(recipe.loss_fn(model, recipe_batch)["loss"].detach())
    assert after < 0.6 * before
    tensors = load_file(tmp_path / "vae.safetensors")
    assert tensors["latents_mean"].shape == (4,) and float(tensors["latents_std"].min()) > 0
    assert set(model.state_dict()) < set(tensors)
