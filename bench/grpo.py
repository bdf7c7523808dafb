"""Does reinforcement keep characters better, and what of it? `python -m bench.grpo --json`.

Every arm begins with the shipped miniature and is judged on the same videos of held-out casts, by
figures that nothing is rewarded for (`training.heldout`): arms are compared case by case with the
shipped model under the same noise. Figures that begin with still_ are of single frames of twice as
many casts: what rollouts are.

    sft                  the shipped model, not trained any further
    grpo                 recipe `grpo_miniature`, with so many updates
    sft_more             supervised training of the same adapters goes on instead, on clips as the
                         model's own was, for the same processor time
    grpo_clips           rollouts are clips, each latent frame with its own credit (`on_clips`)
    grpo_clips_by_video  rollouts are clips, each with one credit
    grpo_chance          as many updates by rewards that are drawn by lot: the control
    grpo_no_fidelity     reward without ID-Crafter's fidelity part; no_quality, no_naturalness alike
    grpo_gamma_0, _1     reward of the mean subject, of the worst subject (the others: .5)
    grpo_groups_4, _16   as many rollouts in smaller or larger updates (the others: 8)
    grpo_other_noise     each member of a group from a noise of its own
    sft_tuned            the shipped model, asked with prompts that describe their casts
    grpo_tuned           trained and asked with them (`training.prompt_tuning`)

An arm's result lies in a file of its own: a study that was stopped goes on, and more seeds or arms
are added to it. Another budget is another folder. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.grpo_plot import draw
from bench.grpo_report import OF_STILLS, STILL, table, told
from engine.checkpoint import load_strict
from engine.pipeline import Engine
from training import evaluate, grpo_miniature, sft, sft_miniature
from training.grpo_miniature import MiniatureGrpo
from training.heldout import HeldOut, Rows, means
from training.rewards.composite import Composite
from training.sft import SftConfig

FIRST = ("sft", "grpo", "sft_more")
ARMS = (
    *FIRST, "grpo_chance", "grpo_clips", "grpo_clips_by_video", "grpo_no_fidelity",
    "grpo_no_quality", "grpo_no_naturalness", "grpo_gamma_0", "grpo_gamma_1", "grpo_groups_4",
    "grpo_groups_16", "grpo_other_noise", "sft_tuned", "grpo_tuned",
)  # fmt: skip
SHIPPED = ("sft", "sft_tuned")  # not trained any further
COMPOSITES = {
    "grpo_no_fidelity": Composite(fidelity=0.0),
    "grpo_no_quality": Composite(fidelity=1.0),
    "grpo_no_naturalness": Composite(beta=0.0),
    "grpo_gamma_0": Composite(gamma=0.0),
    "grpo_gamma_1": Composite(gamma=1.0),
}
SHARDS = 2  # of clips, for supervised training
STILLS = 2  # single frames for each video
PROBE = 3  # steps of supervised training whose time says how many make the same budget


@dataclass(frozen=True)
class Study:
    """base: what `grpo` runs, with its budget and its held-out looks. folder: of all studies.
    rows: clips in a shard of supervised training; batch: of it."""

    base: MiniatureGrpo
    folder: Path = Path("runs/bench_grpo")
    rows: int = 256
    batch: int = 8

    @property
    def own(self) -> Path:
        """This study's folder: another budget is another one."""
        spelled = json.dumps(asdict(self.base), default=str, sort_keys=True)
        return self.folder / hashlib.sha256(spelled.encode()).hexdigest()[:12]


def arm_of(base: MiniatureGrpo, arm: str, seed: int) -> MiniatureGrpo:
    """The run of an arm that is trained by reward."""
    if arm in ("grpo_clips", "grpo_clips_by_video"):
        base = grpo_miniature.on_clips(base, by_frame=arm == "grpo_clips")
    config = base.run.config
    steps, rollout = config.loop.steps, config.rollout
    assert steps is not None
    if arm in ("grpo_groups_4", "grpo_groups_16"):
        groups = int(arm.rpartition("_")[2])
        steps = max(1, round(steps * config.groups / groups))
        config = replace(config, groups=groups)
    if arm == "grpo_other_noise":
        rollout = replace(rollout, same_noise=False, branch=False)
    loop = replace(config.loop, name=arm, seed=seed, steps=steps, sheet_every=0)
    run = replace(base.run, config=replace(config, loop=loop, rollout=rollout))
    composite = COMPOSITES.get(arm, base.composite)
    tuned, chance = arm == "grpo_tuned", arm == "grpo_chance"
    return replace(base, run=run, composite=composite, tuned=tuned, chance=chance)


def sft_of(study: Study, seed: int, steps: int) -> SftConfig:
    """Supervised training of the same adapters, at the same rate, on clips of the training split;
    without the identity loss, whose reader no model folder brings."""
    own, same = sft_miniature.miniature(), study.base.run.config.loop
    loop = replace(
        own.loop, name="sft_more", minutes=None, steps=steps, lr=same.lr, muon_lr=None, seed=seed,
        schedule=same.schedule, warmup=same.warmup, ema=same.ema, sheet_every=0,
    )  # fmt: skip
    data = replace(
        own.data, shards=study.folder / f"clips_{study.rows}", rows=study.rows, alike=1,
        encoders=study.folder / "encoders", plan=((0, SHARDS),), batch_size=study.batch,
    )  # fmt: skip
    return replace(
        own, loop=loop, data=data, lora=study.base.run.rank, identity_gain=0.0, reader=None,
        base=study.base.model / "dit.safetensors", compile=False, num_processes=1, grid=0,
    )  # fmt: skip


def train_more(study: Study, seed: int, folder: Path, budget_s: float) -> dict[str, float]:
    """Supervised training for about `budget_s` of processor time."""
    sft_miniature.gather_encoders(Path("runs"), study.folder / "encoders")
    sft.precompute_part(sft_of(study, seed, PROBE), SHARDS)
    begun = time.process_time()
    sft.train(sft_of(study, seed, PROBE), folder)
    probed_s = time.process_time() - begun
    steps = max(PROBE, round(budget_s * PROBE / probed_s))
    sft.train(sft_of(study, seed, steps), folder)
    return {"cpu_s": time.process_time() - begun, "updates": steps}


def train_arm(study: Study, arm: str, seed: int, folder: Path) -> dict[str, float]:
    """What the training took; its weights lie in the folder."""
    if arm in SHIPPED:
        return {"cpu_s": 0.0, "updates": 0}
    if arm == "sft_more":
        return train_more(study, seed, folder, run_arm(study, "grpo", seed)["cpu_s"])
    asked, begun = arm_of(study.base, arm, seed), time.process_time()
    outcome = grpo_miniature.train(asked, folder)
    if not outcome.finished:
        sys.exit(143)  # stopped by a signal: the next call goes on from the saved state
    return {"cpu_s": time.process_time() - begun, "updates": outcome.step}


def run_arm(study: Study, arm: str, seed: int) -> dict[str, Any]:
    """Trains and judges one arm with one seed, or reads what is known of it."""
    folder = study.own / arm / str(seed)
    path = folder / "result.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    begun = time.monotonic()
    spent = train_arm(study, arm, seed, folder)
    weights = study.base.model if arm in SHIPPED else folder
    rows = judged(study, weights / "dit.safetensors", seed, arm.endswith("_tuned"))
    result = {"arm": arm, "seed": seed, **spent, "figures": means(rows), "rows": rows}
    result["minutes"] = round((time.monotonic() - begun) / 60, 2)
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(result))
    os.replace(draft, path)
    return result


def judged(study: Study, weights: Path, seed: int, tuned: bool = False) -> Rows:
    """Figures of these weights; all arms of a seed are judged by the same whole reward."""
    base = replace(study.base, tuned=tuned)
    engine = Engine.load(base.model)
    load_strict(engine.dit, weights)
    reward = grpo_miniature.reward_of(engine, base.model, Composite())
    looks: HeldOut = replace(grpo_miniature.held_out(base, engine, reward), noise=seed)
    clips = evaluate.sample_clips(STILLS * base.cases, base.subjects, still=True)
    stills = replace(looks, cases=evaluate.prepare(clips, looks.tools))
    found, alone = looks.rows(engine.dit), stills.rows(engine.dit)
    return found | {f"{STILL}{name}": alone[name] for name in OF_STILLS}


def in_order(arms: Sequence[str], seeds: int) -> Iterator[tuple[str, int]]:
    """What the question hangs on first, seed by seed, then the other arms."""
    for some in ([a for a in arms if a in FIRST], [a for a in arms if a not in FIRST]):
        for seed in range(seeds):
            for arm in some:
                yield arm, seed


def run_study(study: Study, arms: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """All arms and seeds, with a table on stderr after each."""
    results: list[dict[str, Any]] = []
    for arm, seed in in_order(arms, seeds):
        results.append(run_arm(study, arm, seed))
        print(table(results), file=sys.stderr, flush=True)
    return results


def small() -> MiniatureGrpo:
    """Everything there is, in seconds: it shows that the bench runs, and nothing else."""
    base = grpo_miniature.miniature()
    config = base.run.config
    tiny = replace(
        config, loop=replace(config.loop, steps=1), groups=2, group_size=2, rows=4, keep=0,
        rollout=replace(config.rollout, steps=3, window=1, reach=2),
    )  # fmt: skip
    return replace(base, run=replace(base.run, config=tiny), tasks=4, cases=2, steps=2)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.grpo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--updates", type=int, help="of each arm (the recipe's)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cases", type=int, default=24, help="held-out casts (24)")
    parser.add_argument("--arms", default=",".join(ARMS), help="comma-separated")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench_grpo"))
    parser.add_argument("--plot", type=Path, help="a picture of it, as PNG")
    parser.add_argument("--small", action="store_true", help="in seconds, to see that it runs")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    return parser.parse_args(given)


def study_of(asked: argparse.Namespace) -> Study:
    """The study that the command line asks for."""
    if asked.small:
        return Study(small(), asked.folder, rows=4, batch=2)
    base = replace(grpo_miniature.miniature(), cases=asked.cases)
    if asked.updates:
        config = base.run.config
        config = replace(config, loop=replace(config.loop, steps=asked.updates))
        base = replace(base, run=replace(base.run, config=config))
    return Study(base, asked.folder)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 for an unknown arm."""
    asked = arguments(given)
    arms = asked.arms.split(",")
    if unknown := sorted(set(arms) - set(ARMS)):
        print(f"unknown arm {unknown[0]!r}; there are: {', '.join(ARMS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    study = study_of(asked)
    results = run_study(study, arms, asked.seeds)
    if asked.plot:
        draw(results, study.own, asked.plot)
    if asked.json:
        print(json.dumps(told(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
