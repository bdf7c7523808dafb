"""SFT end to end at a small size: it learns, resumes, and two processes equal one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.change import nearest
from engine.checkpoint import read_tensors
from engine.dit import WanDiT
from engine.errors import CheckpointError
from engine.presets import Preset
from training import dist, losses, sft
from training.data.loader import Loader
from training.data.shards import Table
from training.loop import LoopConfig
from training.masked import kept_cells
from training.report import read_log

LOOP = LoopConfig("sft", steps=4, lr=2e-3, muon_lr=0.02, warmup=1, sheet_every=0, log_every=1)


@pytest.fixture(scope="module")
def config(
    tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, small_preset: Preset
) -> sft.SftConfig:
    """A run over two shards of six clips, which are written here."""
    data = sft.DataConfig(
        tmp_path_factory.mktemp("shards"), encoder_folder, plan=((0, 2),), rows=6, batch_size=2
    )
    config = sft.SftConfig(LOOP, data, small_preset)
    sft.precompute_part(config, 2)
    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "state" / "train.safetensors")


def test_two_processes_equal_one_that_accumulates(config: sft.SftConfig, tmp_path: Path) -> None:
    config = replace(config, loop=replace(LOOP, steps=2, bf16=False))
    alone = replace(config, loop=replace(config.loop, accumulate=2))
    sft.train(alone, tmp_path / "one")
    dist.launch(partial(_train, config, tmp_path / "two"), 2)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-4)


def _train(config: sft.SftConfig, folder: Path) -> None:
    sft.train(config, folder)


def test_it_learns_writes_sheets_and_exports(config: sft.SftConfig, tmp_path: Path) -> None:
    config = replace(config, loop=replace(LOOP, steps=30, sheet_every=30, ema=0.5))
    outcome = sft.train(config, tmp_path)
    assert outcome.finished
    losses = [row["loss"] for row in read_log(tmp_path / "log.jsonl")]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert (tmp_path / "sheets" / "step_000030.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "curves.png").exists()
    exported = load_file(tmp_path / "dit.safetensors")
    assert exported.keys() == outcome.ema.state_dict().keys()
    assert all(t.dtype == torch.bfloat16 for t in exported.values())


def test_stills_come_first_and_the_videos_go_on(
    config: sft.SftConfig, tmp_path: Path
) -> None:
    still = replace(config.data, shards=tmp_path / "stills", still=True)
    first = replace(config, data=still, draws=3, loop=replace(LOOP, steps=12, sheet_every=12))
    sft.precompute_part(first, 2)
    assert not config.data.folder().has("video", 0, "") and still.folder().num_ready() == 2
    sft.train(first, tmp_path / "first")
    assert list((tmp_path / "first" / "sheets").glob("*.png"))
    losses = [row["loss"] for row in read_log(tmp_path / "first" / "log.jsonl")]
    assert losses[-1] < losses[0]
    base = tmp_path / "first" / "dit.safetensors"
    after = sft.train(replace(config, base=base, draws=2), tmp_path / "second")
    assert after.finished


def test_a_change_ships_with_the_bytes_of_its_base(config: sft.SftConfig, tmp_path: Path) -> None:
    """Its weights were seen so while the rate decayed, and the next change begins there too."""
    first = replace(config, loop=replace(LOOP, steps=2))
    sft.train(first, tmp_path / "base")
    base = tmp_path / "base" / "dit.safetensors"
    loop = replace(LOOP, steps=6, decay_fraction=0.5, ema=0.5)
    tuned = replace(config, base=base, change=3.0, loop=loop)
    outcome = sft.train(tuned, tmp_path / "one")
    file, before = tmp_path / "one" / "dit.safetensors", load_file(base)
    entries = load_file(file)
    assert all(torch.equal(entries[name], value) for name, value in before.items())
    got, plain = read_tensors(file), read_tensors(base)
    around = sft.shipped_form(tuned)
    assert around is not None
    with around(outcome.model):
        seen = {n: p.detach().clone() for n, p in outcome.model.named_parameters()}
    exact = dict(outcome.model.named_parameters())
    assert any(not torch.equal(seen[name], exact[name]) for name in seen)
    for name, value in exact.items():
        want = plain[name] + nearest(value.detach() - plain[name], 3.0)
        torch.testing.assert_close(seen[name], want, rtol=0, atol=1e-5)
        torch.testing.assert_close(got[name], want, rtol=0, atol=1e-5)
    again = replace(tuned, base=file, loop=replace(loop, seed=1))
    assert torch.equal(sft.build(again).head.head.weight, got["head.head.weight"])
    sft.train(again, tmp_path / "two")
    later = load_file(tmp_path / "two" / "dit.safetensors")
    assert all(torch.equal(later[name], value) for name, value in before.items())
    moved = read_tensors(tmp_path / "two" / "dit.safetensors")
    assert not all(torch.equal(moved[name], value) for name, value in got.items())


def test_a_change_keeps_the_precision_of_its_base(config: sft.SftConfig, tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = tmp_path / "base.safetensors"
    save_file(WanDiT(config.preset.dit).state_dict(), base)  # fp32, not what bf16 can tell
    tuned = replace(config, base=base, change=3.0, loop=replace(LOOP, steps=1))
    sft.train(tuned, tmp_path / "run")
    entries = load_file(tmp_path / "run" / "dit.safetensors")
    assert all(torch.equal(entries[name], value) for name, value in load_file(base).items())


def test_a_change_to_half_a_model_is_refused_before_it_trains(
    config: sft.SftConfig, tmp_path: Path
) -> None:
    base = tmp_path / "base.safetensors"
    save_file(WanDiT(replace(config.preset.dit, subject_layers=0)).state_dict(), base)
    with pytest.raises(CheckpointError, match="base lacks"):
        sft.build(replace(config, base=base, change=3.0))


def test_what_a_change_cannot_go_with_is_told(config: sft.SftConfig) -> None:
    for odd in ({"base": None}, {"grid": 3}, {"lora": 4}):
        with pytest.raises(ValueError, match="change goes with a base"):
            replace(config, **({"base": Path("x"), "change": 3.0} | odd))


def test_clips_from_a_later_number_on(config: sft.SftConfig, tmp_path: Path) -> None:
    data = replace(config.data, shards=tmp_path / "later", first=6)
    sft.precompute_part(replace(config, data=data), 1)
    rows = [load_file(f.file("video", shard))["latents"]
            for f, shard in ((config.data.folder(), 1), (data.folder(), 0))]  # fmt: skip
    assert torch.equal(*rows)
    assert data.folder("heldout").seeds(0).start == 0


def test_a_base_without_the_stream_starts_as_plain_wan(
    config: sft.SftConfig, tmp_path: Path
) -> None:
    """As published Wan weights do: every one of them is loaded, the stream is silent."""
    plain = replace(config.preset.dit, subject_layers=0)
    torch.manual_seed(9)
    base = WanDiT(plain)
    torch.nn.init.normal_(base.head.head.weight)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    table = Table(config.data.folder())
    batch = Loader(table, 2, ((0, 2),)).batch(0)
    dit = sft.build(replace(config, base=tmp_path / "base.safetensors"))
    t_B = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        want = base(batch.x0_BCFHW, t_B, batch.text_BTM)
        got = dit(batch.x0_BCFHW, t_B, batch.text_BTM, sft.subject_inputs(batch))
    assert want.abs().max() > 0 and torch.equal(got, want)
    tensors = base.state_dict()
    del tensors["head.head.bias"]
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(CheckpointError, match="lacks head.head.bias"):
        sft.build(replace(config, base=tmp_path / "base.safetensors"))


def test_stopped_and_continued_is_bit_equal(config: sft.SftConfig, tmp_path: Path) -> None:
    half = replace(config, loop=replace(LOOP, schedule="constant", steps=2))
    full = replace(config, loop=replace(LOOP, schedule="constant", steps=4))
    sft.train(full, tmp_path / "whole_constant")
    sft.train(half, tmp_path / "parts")
    sft.train(full, tmp_path / "parts")
    one, two = weights(tmp_path / "whole_constant"), weights(tmp_path / "parts")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_lora_trains_adapters_and_exports_both(config: sft.SftConfig, tmp_path: Path) -> None:
    base = WanDiT(config.preset.dit)
    from engine import checkpoint

    (tmp_path / "base.safetensors").write_bytes(checkpoint.tensor_bytes(base.state_dict()))
    config = replace(config, lora=2, base=tmp_path / "base.safetensors")
    sft.train(config, tmp_path / "run")
    merged = load_file(tmp_path / "run" / "dit.safetensors")
    assert merged.keys() == base.state_dict().keys()
    assert (tmp_path / "run" / "lora.safetensors").exists()


def test_a_stream_that_sees_the_time_trains(config: sft.SftConfig, tmp_path: Path) -> None:
    """Its projection of the time starts as zero; what the run leaves has learned, and loads."""
    timed = replace(config.preset.dit, stream_time=True)
    sft.train(replace(config, preset=replace(config.preset, dit=timed)), tmp_path)
    tensors = load_file(tmp_path / "dit.safetensors")
    assert tensors["subject_time.weight"].abs().max() > 0
    WanDiT(timed).load_state_dict(tensors)


def test_masked_rows_learn_the_plain_model(config: sft.SftConfig) -> None:
    """With everything dropped the stream gets no gradient: those rows are plain Wan."""
    from training.data.loader import Dropout

    table = Table(config.data.folder())
    loader = Loader(table, 2, config.data.plan)
    dit = sft.build(config)
    # The head starts at zero, so at first only it would learn.
    torch.nn.init.normal_(dit.head.head.weight)
    dropped = replace(config, dropout=Dropout(everything=1.0))
    torch.manual_seed(0)
    sft.velocity_loss(dit, loader.batch(0), dropped)["loss"].backward()
    stream = [p for n, p in dit.named_parameters() if n.startswith("subject_blocks")]
    assert all(p.grad is None or not p.grad.any() for p in stream)
    torch.manual_seed(0)
    kept = replace(config, dropout=Dropout(everything=0.0))
    sft.velocity_loss(dit, loader.batch(0), kept)["loss"].backward()
    assert dit.head.head.weight.grad is not None and dit.head.head.weight.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in stream)


def test_missing_vlm_column_is_fine_without_a_vlm(
    config: sft.SftConfig, tmp_path: Path
) -> None:
    preset = replace(config.preset, dit=replace(config.preset.dit, use_vlm=False))
    config = replace(config, preset=preset, loop=replace(LOOP, steps=1))
    assert "vlm" not in config.columns
    assert sft.train(config, tmp_path).finished


def test_sharded_processes_equal_one_and_resume(config: sft.SftConfig, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=2, bf16=False, muon_lr=None, schedule="constant")
    config = replace(config, data=replace(config.data, mixed=True))
    sft.train(replace(config, loop=replace(loop, accumulate=2)), tmp_path / "one")
    sharded = replace(config, loop=replace(loop, save_every_s=0.0), fsdp=True)
    dist.launch(partial(_train, replace(sharded, loop=replace(loop, steps=1)), tmp_path / "two"), 2)
    dist.launch(partial(_train, sharded, tmp_path / "two"), 2)
    one = load_file(tmp_path / "one" / "dit.safetensors")
    two = load_file(tmp_path / "two" / "dit.safetensors")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=2e-2, atol=1e-3)
    saved = sorted(p.name for p in (tmp_path / "two" / "state").iterdir())
    assert saved == ["complete", *(f"step_2-{r}_of_2.safetensors" for r in range(2))]


def test_fsdp_refuses_what_it_cannot_do(config: sft.SftConfig) -> None:
    with pytest.raises(ValueError, match="AdamW"):
        replace(config, fsdp=True)
    with pytest.raises(ValueError, match="mixed"):
        replace(config, fsdp=True, loop=replace(LOOP, muon_lr=None))


def test_compiling_takes_what_has_no_stream(config: sft.SftConfig) -> None:
    """The ablation's plain base, and its concatenating arm."""
    for change in ({"subject_layers": 0}, {"layout": "concat"}):
        dit = WanDiT(replace(config.preset.dit, **change))
        assert sft.compiled(dit) is dit


def test_identity_loss_is_added_and_told(config: sft.SftConfig, tmp_path: Path) -> None:
    from training import convnet
    from training.latent_reader import CONFIG, LatentReader

    torch.manual_seed(0)
    convnet.save(LatentReader(16, CONFIG), tmp_path / "reader.safetensors")
    plain = replace(config, loop=replace(LOOP, steps=1))
    sft.train(plain, tmp_path / "plain")
    read = replace(plain, identity_gain=1.0, reader=tmp_path / "reader.safetensors", draws=2)
    sft.train(read, tmp_path / "read")
    (row,) = read_log(tmp_path / "read" / "log.jsonl")
    assert row["loss_identity"] > 0 and "loss_identity" not in read_log(
        tmp_path / "plain" / "log.jsonl"
    )[0]  # fmt: skip
    with pytest.raises(CheckpointError, match="miniature_latent_reader"):
        sft.train(replace(read, reader=tmp_path / "none.safetensors"), tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"identity_gain": 0.1}, "needs a reader"),
        ({"grid": 3, "lora": 2}, "no lora"),
        ({"kept": 0.0}, "share of the tokens"),
        ({"frozen": "blocks"}, "frozen goes with a base"),
    ],
)
def test_what_does_not_go_together_is_refused(
    config: sft.SftConfig, change: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_weights_are_rounded_while_the_rate_decays(config: sft.SftConfig, tmp_path: Path) -> None:
    loop = replace(LOOP, steps=2, decay_fraction=1.0)
    results = []
    for grid in (0, 2):
        sft.train(replace(config, loop=loop, grid=grid), tmp_path / str(grid))
        results.append(read_log(tmp_path / str(grid) / "log.jsonl")[0])
    # The head starts at zero, so the first loss is the same; its gradient is not.
    assert results[0]["grad_norm"] != results[1]["grad_norm"]


def test_tokens_that_are_left_out_count_as_right(config: sft.SftConfig) -> None:
    """With half of the tokens, characters' first, the loss is the weighted error of just those."""
    batch = Loader(Table(config.data.folder()), 2, config.data.plan).batch(0)
    asked: list[tuple[torch.Tensor, ...]] = []

    def velocity(
        x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, subjects: object, kept: torch.Tensor
    ) -> torch.Tensor:
        asked.append((x, t, kept))
        cells = kept_cells(kept, (x.shape[2], x.shape[3], x.shape[4]), (1, 2, 2))
        return torch.where(cells[:, None], 1.0, 1e6).expand_as(x)

    torch.manual_seed(0)
    loss = sft.velocity_loss(velocity, batch, replace(config, region_gain=4.0), share=0.5)["loss"]
    (x, t, kept), grid = asked[0], batch.x0_BCFHW.shape[2:]
    weight = losses.region_weight(
        batch.boxes_BSTX, batch.subject_mask_BS, tuple(grid), config.preset.vae.spatial_factor, 4.0
    )
    cells = kept_cells(kept, tuple(grid), (1, 2, 2))
    assert kept.shape == (2, cells[0].numel() // 8)
    touched = torch.nn.functional.max_pool3d(weight[:, None], (1, 2, 2)).flatten(1) > 1
    first = touched.gather(1, kept).sum(1)
    assert first.tolist() == touched.sum(1).clamp(max=kept.shape[1]).tolist()
    target = (x - batch.x0_BCFHW) / t[:, None, None, None, None].float()
    error = (1.0 - target).square().mean(1) * weight * cells
    want = error.sum((1, 2, 3)) / (weight * cells).sum((1, 2, 3))
    torch.testing.assert_close(loss, want.mean(), rtol=1e-4, atol=1e-4)


def test_all_tokens_are_kept_while_the_rate_decays(config: sft.SftConfig, tmp_path: Path) -> None:
    seen: list[float] = []
    true = sft.velocity_loss

    def spied(*args: object) -> dict[str, torch.Tensor]:
        seen.append(float(args[-1]))  # type: ignore[arg-type]
        return true(*args)  # type: ignore[arg-type]

    loop = replace(LOOP, steps=4, schedule="wsd", decay_fraction=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "velocity_loss", spied)
        sft.train(replace(config, loop=loop, kept=0.5), tmp_path)
    assert seen == [0.5, 0.5, 1.0, 1.0]


def test_what_is_frozen_stays_as_in_the_base(config: sft.SftConfig, tmp_path: Path) -> None:
    sft.train(replace(config, loop=replace(LOOP, steps=1)), tmp_path / "old")
    base = tmp_path / "old" / "dit.safetensors"
    tuned = replace(config, base=base, frozen="subject_blocks|cross_attn", change=1.5)
    sft.train(replace(tuned, loop=replace(LOOP, steps=2, decay_fraction=0.5)), tmp_path / "new")
    old, new = read_tensors(base), read_tensors(tmp_path / "new" / "dit.safetensors")
    for name, value in old.items():
        frozen = "subject_blocks" in name or "cross_attn" in name
        assert torch.equal(value, new[name]) or not frozen, name
    assert any(not torch.equal(value, new[name]) for name, value in old.items())
    for pattern in ("nothing_has_this_name", "."):
        with pytest.raises(ValueError, match="frozen: .* fits"):
            sft.build(replace(tuned, frozen=pattern))
