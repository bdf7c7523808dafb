"""The picture of a study: what is drawn is what was logged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.grpo_plot import CONTROL, draw, gained
from bench.grpo_report import ALL


def result(arm: str, seed: int, level: float) -> dict[str, Any]:
    rows = {name: [level, level + 0.1, level + 0.3] for name in ALL}
    figures = {name: float(np.mean(values)) for name, values in rows.items()}
    return {"arm": arm, "seed": seed, "cpu_s": 1.0, "updates": 3, "figures": figures, "rows": rows}


def log(folder: Path, rewards: list[float], **more: float) -> Path:
    folder.mkdir(parents=True)
    lines = [
        json.dumps({"step": n, "reward": r} | {k: v * n for k, v in more.items()})
        for n, r in enumerate(rewards, 1)
    ]
    (folder / "log.jsonl").write_text("\n".join([*lines, json.dumps({"held_reward": 1.0})]) + "\n")
    return folder


def test_a_runs_gain_is_against_the_controls_true_reward(tmp_path: Path) -> None:
    own = log(tmp_path / "grpo", [0.5, 0.7, 0.9, 1.0])
    control = log(tmp_path / "control", [0.1, 0.9, 0.4], true_reward=0.25)
    assert np.allclose(gained(own, control), [0.25, 0.2, 0.15])


def test_a_study_is_drawn_whole_or_in_part(tmp_path: Path) -> None:
    log(tmp_path / "grpo" / "0", [0.5] * 30)
    log(tmp_path / CONTROL / "0", [0.4] * 30)
    some = [result("sft", 0, 0.1), result("grpo", 0, 0.2)]
    all_of_it = [*some, result(CONTROL, 0, 0.1)]
    pictures = []
    for number, results in enumerate((some[:1], some, all_of_it)):
        draw(results, tmp_path, tmp_path / f"{number}.png")
        pictures.append(np.asarray(Image.open(tmp_path / f"{number}.png").convert("L")))
    assert all(not np.array_equal(a, b) for a, b in zip(pictures, pictures[1:], strict=False))
