import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import golden, reader
from engine.change import changes, step_of
from engine.checkpoint import read_tensors, tensor_bytes
from engine.errors import CheckpointError
from engine.evaluation import PAINTERS
from engine.folders import Manifest, verify
from training import publish as publishing
from training.grid import READER_SPACING
from training.publish import (
    DIT,
    FILES,
    GRID,
    MORE,
    draw_lineage,
    gather,
    lineage,
    publish,
)

READER = Path(FILES[reader.FILE]) / reader.FILE
SHIPPED = Path(__file__).parents[2] / "models" / "miniature"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for name, run in FILES.items():
        (root / run).mkdir(parents=True, exist_ok=True)
        (root / run / name).write_bytes(name.encode())
    torch.manual_seed(0)
    save_file({"w": torch.randn(64, 48), "b": torch.randn(7)}, root / DIT)
    save_file({"who.w": torch.randn(32, 32), "who.b": torch.randn(5)}, root / READER)
    log = root / "miniature_sft" / "log.jsonl"
    log.write_text(
        '{"step": 10, "loss": 1, "steps_per_s": 0.5}\n'
        '{"step": 15, "psnr": 20}\n'
        '{"step": 20, "loss": 0.5, "steps_per_s": 0.25}\n'
    )
    return root


def evaluation(
    runs: Path, reached: float = 0.7, shipped: Path = SHIPPED
) -> dict[str, object]:
    """Of what would ship: how far it keeps one subject."""
    files = gather(runs, shipped)
    digest = publishing._digest
    own = {part: digest(files[name]) for part, name in PAINTERS.items() if name in files}
    row = {"reached": reached, "reached_se": 0.01}
    return {**own, "subjects": {"1": row}}


def published(runs: Path, target: Path, reached: float = 0.7, anyway: bool = False) -> Manifest:
    return publish(runs, target, evaluation(runs, reached), anyway)


def test_the_folder_verifies_and_says_where_it_comes_from(runs: Path, tmp_path: Path):
    told = evaluation(runs)
    publish(runs, tmp_path / "model", told)
    manifest = verify(tmp_path / "model")
    assert set(manifest.files) == set(FILES)
    assert manifest.evaluation == told and manifest.lineage["code"]
    assert manifest.lineage["dit"] == {"run": "miniature_sft", "steps": 20, "minutes": 1.0}


def test_publishing_again_replaces(runs: Path, tmp_path: Path):
    first = published(runs, tmp_path / "model")
    save_file({"w": torch.ones(2, 2)}, runs / DIT)
    second = published(runs, tmp_path / "model")
    assert first.digest() != second.digest()
    assert second.lineage["parent"] == first.digest() and "parent" not in first.lineage
    assert verify(tmp_path / "model").digest() == second.digest()


def test_a_missing_export_is_named_and_nothing_is_written(runs: Path, tmp_path: Path):
    (runs / "identity" / "oracle.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="oracle"):
        publish(runs, tmp_path / "model", {})
    assert not (tmp_path / "model").exists()


def test_a_part_without_a_run_is_the_shipped_one(runs: Path, tmp_path: Path):
    """Who trains the transformer on has run nothing else."""
    target = tmp_path / "model"
    before = published(runs, target)
    shutil.rmtree(runs / "identity")
    shutil.rmtree(runs / "miniature_sft")
    (runs / "miniature_sft_more").mkdir()
    entries = load_file(target / "dit.safetensors")
    more = entries | changes("w", torch.randn(64, 48), 3.5)
    (runs / MORE).write_bytes(tensor_bytes(more))
    row = '{"step": 5, "loss": 1, "steps_per_s": 0.5}\n'
    (runs / MORE).with_name("log.jsonl").write_text(row)
    told = evaluation(runs, 0.8, target)
    after = publish(runs, target, told)
    unchanged = [name for name in FILES if before.files[name] == after.files[name]]
    assert sorted(unchanged) == sorted(FILES.keys() - {"dit.safetensors"})
    assert (target / "dit.safetensors").read_bytes() == (runs / MORE).read_bytes()
    assert after.lineage["dit"] == before.lineage["dit"]
    assert after.lineage["dit_more"]["steps"] == 5
    assert after.lineage["parent"] == before.digest()


def test_a_part_that_has_no_change_inherits_none(runs: Path, tmp_path: Path):
    target = tmp_path / "model"
    published(runs, target)
    shutil.copytree(runs / "miniature_sft", runs / "miniature_sft_more")
    shutil.copy(target / "dit.safetensors", runs / MORE)
    assert "dit_more" in published(runs, target).lineage
    shutil.rmtree(runs / "miniature_sft_more")
    assert "dit_more" not in published(runs, target).lineage


def test_the_change_of_another_transformer_is_refused(runs: Path, tmp_path: Path):
    """The last stage was run, then the one before it again: whose weights are these?"""
    target = tmp_path / "model"
    published(runs, target)
    (runs / MORE).parent.mkdir()
    entries = load_file(target / "dit.safetensors")
    (runs / MORE).write_bytes(tensor_bytes(entries | changes("w", torch.randn(64, 48), 3.5)))
    gather(runs, target)
    save_file({"w": torch.randn(64, 48), "b": torch.randn(7)}, runs / DIT)
    with pytest.raises(CheckpointError, match="changes another transformer"):
        gather(runs, target)
    (runs / MORE).unlink()
    with pytest.raises(FileNotFoundError, match="miniature_sft_more.*has not exported"):
        gather(runs, target)


def test_a_damaged_part_gets_no_new_digest(runs: Path, tmp_path: Path):
    target = tmp_path / "model"
    published(runs, target)
    shutil.rmtree(runs / "identity")
    (target / "oracle.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="oracle"):
        gather(runs, target)


def test_nothing_new_is_what_shipped_to_the_byte(runs: Path, tmp_path: Path):
    target = tmp_path / "model"
    published(runs, target)
    before = (target / "dit.safetensors").read_bytes()
    shutil.rmtree(runs / "miniature_sft")
    assert gather(runs, target)["dit.safetensors"] == before


def test_lineage_skips_what_did_not_run(runs: Path):
    assert set(lineage(runs)) == {"dit"}
    assert json.dumps(lineage(runs))


def test_the_curves_of_all_runs_are_one_picture(runs: Path, tmp_path: Path):
    draw_lineage(runs, tmp_path / "docs" / "curves.png")
    assert (tmp_path / "docs" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_matrices_ship_on_a_grid_and_vectors_as_they_are(runs: Path, tmp_path: Path):
    published(runs, tmp_path / "model")
    file = tmp_path / "model" / "dit.safetensors"
    trained, shipped = load_file(runs / DIT), read_tensors(file)
    assert load_file(file)["w"].dtype == torch.int8
    assert torch.equal(shipped["b"], trained["b"].bfloat16().float())
    error = (shipped["w"] - trained["w"]).square().mean() / trained["w"].square().mean()
    assert error < (1.1 / (GRID * 12**0.5)) ** 2, "that of even rounding"


def test_readers_ship_in_steps_and_vectors_as_they_are(runs: Path, tmp_path: Path):
    published(runs, tmp_path / "model")
    file = tmp_path / "model" / reader.FILE
    trained, shipped = load_file(runs / READER), read_tensors(file)
    assert torch.equal(shipped["who.b"], trained["who.b"].bfloat16().float())
    error = (shipped["who.w"] - trained["who.w"]).abs().max()
    assert error <= 0.501 * step_of(trained["who.w"], READER_SPACING)
    assert load_file(file)["who.w"].dtype == torch.int8
    shutil.rmtree((runs / READER).parent)  # later versions keep it, to the byte
    assert gather(runs, tmp_path / "model")[reader.FILE] == file.read_bytes()


def test_without_its_own_figures_nothing_is_published(runs: Path, tmp_path: Path):
    own = evaluation(runs)
    others = [own | {part: "another"} for part in PAINTERS]
    for wrong in (None, {}, {"dit": own["dit"]}, own | {"still": True}, {"seeds": 3}, *others):
        with pytest.raises(CheckpointError, match="no evaluation of the videos of what would ship"):
            publish(runs, tmp_path / "model", wrong)
    assert not (tmp_path / "model").exists()


def test_what_is_worse_than_its_parent_must_be_insisted_on(runs: Path, tmp_path: Path):
    first = published(runs, tmp_path / "model", 0.7)
    with pytest.raises(CheckpointError, match="keeps 1 subjects 0.60 .* the other 0.70"):
        published(runs, tmp_path / "model", 0.6)
    assert verify(tmp_path / "model").digest() == first.digest()
    worse = published(runs, tmp_path / "model", 0.6, anyway=True)
    assert worse.lineage["parent"] == first.digest() and verify(tmp_path / "model") == worse


def test_a_candidate_is_written_to_be_evaluated(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the shipped weights: they are tried out, and what they make is published with them."""
    for name, run in FILES.items():
        shutil.copy(SHIPPED / name, runs / run / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="--model runs/candidate"):
        publishing.run()
    files = verify(runs / "candidate").files
    own = {part: files[name] for part, name in PAINTERS.items()}
    (runs / "evaluation.json").write_text(json.dumps(own))
    publishing.run()
    manifest = verify(tmp_path / "models" / "miniature")
    assert {part: manifest.files[name] for part, name in PAINTERS.items()} == own
    assert manifest.evaluation["golden"] == golden.told(tmp_path / "models" / "miniature")["golden"]


def test_without_logs_there_is_nothing_to_draw(tmp_path: Path):
    draw_lineage(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
