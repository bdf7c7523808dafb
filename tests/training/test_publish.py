import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoint import read_tensors, verify
from engine.errors import CheckpointError
from training.publish import DIT, FILES, GRID, draw_lineage, lineage, publish


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for name, run in FILES.items():
        (root / run).mkdir(parents=True, exist_ok=True)
        (root / run / name).write_bytes(name.encode())
    torch.manual_seed(0)
    save_file({"w": torch.randn(64, 48), "b": torch.randn(7)}, root / DIT)
    log = root / "miniature_sft" / "log.jsonl"
    log.write_text(
        '{"step": 10, "loss": 1, "steps_per_s": 0.5}\n'
        '{"step": 15, "psnr": 20}\n'
        '{"step": 20, "loss": 0.5, "steps_per_s": 0.25}\n'
    )
    return root


def test_the_folder_verifies_and_says_where_it_comes_from(runs: Path, tmp_path: Path):
    sha256 = publish(runs, tmp_path / "model").files["dit.safetensors"]
    publish(runs, tmp_path / "model", {"seeds": 3, "dit": sha256})
    manifest = verify(tmp_path / "model")
    assert set(manifest.files) == set(FILES)
    assert manifest.evaluation == {"seeds": 3, "dit": sha256}
    assert manifest.lineage["dit"] == {"run": "miniature_sft", "steps": 20, "minutes": 1.0}


def test_publishing_again_replaces(runs: Path, tmp_path: Path):
    first = publish(runs, tmp_path / "model")
    save_file({"w": torch.ones(2, 2)}, runs / DIT)
    second = publish(runs, tmp_path / "model")
    assert first.digest() != second.digest()
    assert verify(tmp_path / "model").digest() == second.digest()


def test_a_missing_export_is_named_and_nothing_is_written(runs: Path, tmp_path: Path):
    (runs / "identity" / "oracle.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="oracle"):
        publish(runs, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_lineage_skips_what_did_not_run(runs: Path):
    assert set(lineage(runs)) == {"dit"}
    assert json.dumps(lineage(runs))


def test_the_curves_of_all_runs_are_one_picture(runs: Path, tmp_path: Path):
    draw_lineage(runs, tmp_path / "docs" / "curves.png")
    assert (tmp_path / "docs" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_matrices_ship_on_a_grid_and_vectors_as_they_are(runs: Path, tmp_path: Path):
    publish(runs, tmp_path / "model")
    file = tmp_path / "model" / "dit.safetensors"
    trained, shipped = load_file(runs / DIT), read_tensors(file)
    assert load_file(file)["w"].dtype == torch.int8
    assert torch.equal(shipped["b"], trained["b"].bfloat16().float())
    error = (shipped["w"] - trained["w"]).square().mean() / trained["w"].square().mean()
    assert error < (1.1 / (GRID * 12**0.5)) ** 2, "that of even rounding"


def test_figures_of_another_model_or_of_stills_are_refused(runs: Path, tmp_path: Path):
    sha256 = publish(runs, tmp_path / "model").files["dit.safetensors"]
    for wrong in ({"dit": "another"}, {"dit": sha256, "still": True}, {"seeds": 3}):
        with pytest.raises(CheckpointError, match="not of the videos of what would ship"):
            publish(runs, tmp_path / "model", wrong)


def test_without_logs_there_is_nothing_to_draw(tmp_path: Path):
    draw_lineage(tmp_path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
