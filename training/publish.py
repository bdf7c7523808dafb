"""Recipe `miniature_publish`: from finished runs to the model folder that ships.

Gathers the exported weights and writes them with a manifest (sha256 of every file, the recipes and
their lengths, the model that it follows, the evaluation) into models/miniature, whole or not at
all. Without an evaluation of these very weights it writes runs/candidate, to be evaluated; what
keeps characters less far than the model that it would replace is refused, except by
`miniature_publish_anyway`.

Matrices of the transformer are rounded to a grid (GRID steps to the root mean square) and stored as
int8, those of the readers as `engine.checkpoint.in_steps`: git keeps every version for ever, and so
a file packs into a third of the room. A run that changes what shipped (`miniature_sft_more`) leaves
that file with its change beside it. A part that has no run here is the shipped one's. What ships is
what is measured.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

from engine import golden, reader
from engine.change import without_changes
from engine.checkpoint import in_steps, on_grid, open_tensors, read_tensors, tensor_bytes
from engine.errors import CheckpointError
from engine.evaluation import PAINTERS, shortfalls
from engine.folders import MANIFEST, Manifest, read_manifest, save_folder, sha256, verify
from training.grid import READER_SPACING
from training.report import read_log, smooth

# The entries of a file that hold a tensor: (name, tensor) to them.
Form = Callable[[str, Tensor], dict[str, Tensor]]

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
    reader.FILE: "readers",
}
CANDIDATE = "runs/candidate"  # what would ship, before it is evaluated
GRID = 3
CHANGE_SPACING = 1.6  # a bit and a half for each number that was trained
FORMS: dict[str, Form] = {
    "dit.safetensors": partial(on_grid, steps=GRID),
    reader.FILE: partial(in_steps, spacing=READER_SPACING),
}
DIT = f"{FILES['dit.safetensors']}/dit.safetensors"
MORE = "miniature_sft_more/dit.safetensors"  # where it has been run, it ships
STATES = {
    "vae": "miniature_vae",
    "text": "text",
    "vlm": "vlm",
    "dit_small": "miniature_sft_small",
    "dit_still": "miniature_sft_still",
    "dit": "miniature_sft",
    "dit_more": "miniature_sft_more",
    "latent_reader": "latent_reader",
    "locator": "locator",
    "readers_first": "readers/first",
    "readers": "readers",
    "identity": "identity/encoder",
    "detector": "identity/detector",
    "oracle": "identity/oracle",
}


def lineage(runs: Path) -> dict[str, Any]:
    """For each model: its run, and the updates and minutes that it was trained for."""
    found: dict[str, Any] = {}
    for name, run in STATES.items():
        rows = read_log(runs / run / "log.jsonl")
        if rows:
            found[name] = {"run": run, "steps": int(rows[-1]["step"]), "minutes": minutes(rows)}
    return found


def _require_own(evaluation: Mapping[str, Any], files: Mapping[str, bytes | Path]) -> None:
    painters = {part: name for part, name in PAINTERS.items() if name in files}
    own = (evaluation.get(part) == _digest(files[name]) for part, name in painters.items())
    if evaluation.get("still") or not all(own):
        raise CheckpointError(
            f"there is no evaluation of the videos of what would ship: save the last line of"
            f" `python -m bench.identity --json --model {CANDIDATE}` in runs/evaluation.json, and"
            " publish again"
        )


def _digest(file: bytes | Path) -> str:
    return sha256(file) if isinstance(file, Path) else hashlib.sha256(file).hexdigest()


def minutes(rows: list[dict[str, float]]) -> float:
    """How long the logged updates took together; pauses between resumes do not count."""
    timed = [row for row in rows if row.get("steps_per_s")]
    before = [0.0, *(row["step"] for row in timed)]
    spent_s = (
        max(row["step"] - last, 0) / row["steps_per_s"]
        for row, last in zip(timed, before, strict=False)
    )
    return round(sum(spent_s) / 60, 1)


def draw_lineage(runs: Path, path: Path) -> None:
    """The loss of every run over its updates, each in a panel of its own, as one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = lineage(runs)
    if not found:
        return
    columns = 3
    figure = Figure(figsize=(10, 2.2 * -(-len(found) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (name, told) in enumerate(found.items(), start=1):
        rows = [row for row in read_log(runs / told["run"] / "log.jsonl") if "loss" in row]
        axis = figure.add_subplot(-(-len(found) // columns), columns, place)
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        axis.plot(steps, losses, color="#b8c4d6", linewidth=0.8)
        axis.plot(steps, smooth(losses, max(1, len(losses) // 20)), color="#24406b")
        axis.set_yscale("log")
        axis.set_title(f"{name}: {told['steps']} updates, {told['minutes']:.0f} min", fontsize=9)
        axis.tick_params(labelsize=7, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, format="png")


def gather(runs: Path, shipped: Path) -> dict[str, bytes | Path]:
    """The files of the model that stands in `runs`, the transformer in the form that ships; a part
    of which `runs` has no folder is that of `shipped`.

    Raises:
        FileNotFoundError: a run has not exported its file; the message names it.
        CheckpointError: `shipped` is damaged, or the last stage changed another transformer.
    """
    files: dict[str, bytes | Path] = {}
    kept: list[str] = []
    for name, run in FILES.items():
        path = runs / run / name
        if not path.parent.exists() and (shipped / name).exists():
            path = shipped / name
            kept.append(name)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: the recipe of {run} has not exported it")
        files[name] = path
    if kept:
        verify(shipped)  # what somebody has damaged must not get a new digest
        files |= {name: (shipped / name).read_bytes() for name in kept}
    for name in (name for name in FORMS if name in files and name not in kept):
        exact = files[name]
        assert isinstance(exact, Path)
        files[name] = _formed(exact, FORMS[name])
    if not (runs / MORE).parent.exists():
        return files
    if not (runs / MORE).exists():
        raise FileNotFoundError(f"{runs / MORE} is missing: its recipe has not exported it")
    whole = files["dit.safetensors"]
    assert isinstance(whole, bytes)
    own, before = (without_changes(x) for x in (open_tensors(runs / MORE), load(whole)))
    if own.keys() != before.keys() or not all(torch.equal(own[n], x) for n, x in before.items()):
        raise CheckpointError(
            f"{runs / MORE} changes another transformer than the one that would ship: train it"
            " again, or move it away"
        )
    return files | {"dit.safetensors": (runs / MORE).read_bytes()}


def _formed(path: Path, form: Form) -> bytes:
    """A file in the form in which it ships."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in read_tensors(path).items():
        tensors |= form(name, tensor)
    return tensor_bytes(tensors)


def publish(
    runs: Path, target: Path, evaluation: Mapping[str, Any] | None, anyway: bool = False
) -> Manifest:
    """Writes the model folder `target` from what stands in `runs`, replacing an older one, which
    becomes its parent.

    Args:
        evaluation: of the very weights that ship, see `bench.identity`.
        anyway: also where it keeps characters less far than its parent.

    Raises:
        FileNotFoundError: a run has not exported its file; the message names it.
        CheckpointError: the evaluation is missing, of stills, or of another transformer than what
            ships, or the model is worse than its parent.
    """
    files = gather(runs, target)
    _require_own(evaluation or {}, files)
    told = lineage(runs) | {"code": code_version()}
    parent = read_manifest(target) if (target / MANIFEST).exists() else None
    if parent is not None:
        worse = shortfalls(evaluation or {}, parent.evaluation)
        if worse and not anyway:
            raise CheckpointError(
                f"worse than {target}: {'; '.join(worse)}; `troupe train miniature_publish_anyway`"
                " insists"
            )
        told = _inherited(parent.lineage, told) | told | {"parent": parent.digest()}
    manifest = Manifest("miniature", lineage=told, evaluation=evaluation or {})
    return save_folder(target, manifest, files, overwrite=True)


def _inherited(parent: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What a parent's lineage says of the parts that have not been made anew."""
    anew = {"dit_more"} if "dit" in own else set()
    return {name: told for name, told in parent.items() if name in STATES.keys() - anew}


def code_version() -> str:
    """The commit that this is run from; where there is none, or no git, the version, and "unknown"
    where nothing is installed."""
    if shutil.which("git") is None:
        return _installed()
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() if told.returncode == 0 else _installed()


def _installed() -> str:
    try:
        return version("troupe")
    except PackageNotFoundError:
        return "unknown"


def run(anyway: bool = False) -> None:
    """models/miniature from runs/, with runs/evaluation.json (the last line of bench.identity);
    and docs/curves.png for the model card; curves_more.png where the transformer only changed."""
    runs, target = Path("runs"), Path("models/miniature")
    report = runs / "evaluation.json"
    evaluation = json.loads(report.read_text()) if report.exists() else None
    draft = Manifest("miniature", lineage=lineage(runs))
    save_folder(Path(CANDIDATE), draft, gather(runs, target), overwrite=True)
    if evaluation is not None:
        evaluation |= golden.told(Path(CANDIDATE))
    manifest = publish(runs, target, evaluation, anyway)
    # A part that stays keeps its curve in the picture of the version before.
    name = "curves.png" if "dit" in lineage(runs) else "curves_more.png"
    draw_lineage(runs, Path("docs") / name)
    sys.stdout.write(f"{target}: {len(manifest.files)} files, {manifest.digest()[:16]}\n")


def run_anyway() -> None:
    """The same, also where the model is worse than the one that it replaces."""
    run(anyway=True)
