"""What a run of adapters publishes: the base with them, evaluated, and never worse unasked."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from engine import adapters, golden
from engine.errors import CheckpointError
from engine.folders import DIT, read_manifest
from engine.pipeline import Engine
from tests.engine.test_swap import louder, variant
from training import lora
from training.publish_adapter import publish


@pytest.fixture(scope="module")
def base(random_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model, as if it kept one subject .6 of the way."""
    told = {"subjects": {"1": {"reached": 0.6, "reached_se": 0.01}}}
    target = tmp_path_factory.mktemp("base") / "base"
    return variant(random_model, target, louder, evaluation=told)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that change something."""
    dit = Engine.load(base).dit
    torch.manual_seed(0)
    lora.add(dit, rank=2)
    with torch.no_grad():
        for name, parameter in dit.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("run") / "lora.safetensors"
    lora.save(dit, path)
    return path


def evaluation(base: Path, trained: Path, tmp_path: Path, reached: float) -> dict[str, Any]:
    """Of the very weights that would ship."""
    publish(base, trained, tmp_path / "draft", anyway=True)
    dit = adapters.merge(base, tmp_path / "draft", tmp_path / "whole").files[DIT]
    return {"dit": dit, "subjects": {"1": {"reached": reached, "reached_se": 0.01}}}


def test_it_says_what_it_is_of_and_what_it_makes(base: Path, trained: Path, tmp_path: Path) -> None:
    told = evaluation(base, trained, tmp_path, 0.7)
    made = publish(base, trained, tmp_path / "adapter", told, {"run": "bright", "steps": 2})
    assert made.lineage["base"] == read_manifest(base).digest()
    assert (made.lineage["run"], made.lineage["steps"]) == ("bright", 2)
    assert made.evaluation["subjects"] == told["subjects"]
    engine = Engine.load(tmp_path / "whole")
    golden.check(engine, made.evaluation)
    assert made.evaluation[golden.KEY] == golden.picture(engine)
    assert made.evaluation[golden.KEY] != golden.picture(Engine.load(base))


def test_what_was_not_evaluated_or_is_worse_is_refused(
    base: Path, trained: Path, tmp_path: Path
) -> None:
    worse = evaluation(base, trained, tmp_path, 0.5)
    for told, why in (
        (None, "no evaluation"),
        (worse | {"dit": "another"}, "no evaluation"),
        (worse, "worse than its base"),
    ):
        with pytest.raises(CheckpointError, match=why):
            publish(base, trained, tmp_path / "adapter", told)
        assert not (tmp_path / "adapter").exists()
    made = publish(base, trained, tmp_path / "adapter", worse, anyway=True)
    assert made.evaluation["subjects"] == worse["subjects"]


def test_adapters_of_another_model_are_refused(base: Path, tmp_path: Path) -> None:
    strange = {
        "blocks.0.self_attn.q.lora_A.default.weight": torch.ones(2, 7),
        "blocks.0.self_attn.q.lora_B.default.weight": torch.ones(7, 2),
    }
    save_file(strange, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="another width"):
        publish(base, tmp_path / "lora.safetensors", tmp_path / "adapter", anyway=True)
