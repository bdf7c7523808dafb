"""Recipe `miniature_publish`: from finished runs to the model folder that ships.

Gathers the exported weights, writes them with a manifest (sha256 of every file, the recipes and
their lengths, the evaluation if there is one) into models/miniature, whole or not at all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from engine.checkpoint import Manifest, save_folder

# File in the model folder: where its recipe leaves it, below runs/.
FILES = {
    "dit.safetensors": "miniature_sft",
    "vae.safetensors": "encoders",
    "text.safetensors": "encoders",
    "text_tokenizer.json": "encoders",
    "vlm.safetensors": "encoders",
    "vlm_tokenizer.json": "encoders",
    "identity.safetensors": "identity",
    "detector.safetensors": "identity",
    "oracle.safetensors": "identity",
}
STATES = {
    "vae": "miniature_vae",
    "text": "text",
    "vlm": "vlm",
    "dit_small": "miniature_sft_small",
    "dit": "miniature_sft",
    "identity": "identity/encoder",
    "detector": "identity/detector",
    "oracle": "identity/oracle",
}


def lineage(runs: Path) -> dict[str, Any]:
    """For each model: the updates it was trained for, and the last figures its run logged."""
    found: dict[str, Any] = {}
    for name, run in STATES.items():
        log = runs / run / "log.jsonl"
        if log.exists():
            last = json.loads(log.read_text().splitlines()[-1])
            found[name] = {"run": run, "steps": last["step"]}
    return found


def publish(runs: Path, target: Path, evaluation: dict[str, Any] | None = None) -> Manifest:
    """Writes the model folder `target` from what stands in `runs`, replacing an older one.

    Raises:
        FileNotFoundError: a run has not exported its file; the message names it.
    """
    files: dict[str, bytes | Path] = {}
    for name, run in FILES.items():
        path = runs / run / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: the recipe of {run} has not exported it")
        files[name] = path
    manifest = Manifest("miniature", lineage=lineage(runs), evaluation=evaluation or {})
    return save_folder(target, manifest, files, overwrite=True)


def run() -> None:
    """models/miniature from runs/, with runs/evaluation.json (the last line of bench.identity)."""
    runs = Path("runs")
    report = runs / "evaluation.json"
    evaluation = json.loads(report.read_text()) if report.exists() else None
    manifest = publish(runs, Path("models/miniature"), evaluation)
    sys.stdout.write(f"models/miniature: {len(manifest.files)} files, {manifest.digest()[:16]}\n")
