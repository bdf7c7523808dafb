"""A GRPO run's rollouts, as the batches of `training.loop`.

An epoch is played when its first batch is asked for, by the policy as it is then, and lies on disk
until the next one: a run that was killed within it goes on with the same rollouts. Processes share
the groups out; every draw is a function of (seed, group, member), so that their number changes
nothing.

Legend: B rollouts of this process in an epoch, K steps that are trained, R processes, U updates,
P parts of a rollout that have a reward of their own: its latent frames where credit is given by
frame, else one, and the dimension is not there.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from engine import flow
from engine.flow import Noise
from training import dist
from training.advantages import advantages, best_and_worst, weights
from training.grpo_config import GrpoConfig
from training.rewards.door import TOTAL, Reward, judged, judged_by_frame
from training.rollout import Member, Policy, Trajectory, play, seed_of, window
from training.state import write_safetensors


class Epoch(NamedTuple):
    """The rollouts of this process that are trained, in the order in which they are.

    value_B: advantages, or [B, P]. weight_B: see `advantages.weights`. sample_B: number of the
    sample. places_K: of the window's steps, those that are trained. told: figures for the log;
    rollouts, rollout_s and reward_s are an update's share of the epoch's.
    """

    trajectory: Trajectory
    value_B: Tensor
    weight_B: Tensor
    sample_B: Tensor
    places_K: Tensor
    told: dict[str, float]


class Part(NamedTuple):
    """A batch: some rollouts at one trained step, `place` of the window and `number` of these.

    moved: the policy has been updated since it made them.
    """

    samples: list[Any]
    trajectory: Trajectory
    value_B: Tensor
    weight_B: Tensor
    place: int
    number: int
    update: int
    moved: bool
    told: dict[str, float]


@dataclass
class Rollouts:
    """The run's batches, `batch(index)`: an epoch is played when its first one is asked for.

    model: the module in training, read when an epoch is played. folder: of the run.
    """

    config: GrpoConfig
    policy: Policy
    reward: Reward
    samples: Sequence[Any]
    model: nn.Module
    folder: Path
    group: dist.Group = field(default_factory=dist.Group)
    number: int = -1
    epoch: Epoch | None = None

    def batch(self, index: int) -> Part:
        """The part with this number of the whole run."""
        config, size = self.config, self.group.size
        each = config.for_loop(size).accumulate
        update, within = divmod(index, each * size)
        number, done = divmod(update, config.updates)
        chunk, place = divmod(within // size, config.num_trained)
        epoch = self._open(number)
        per_update = len(epoch.value_B) // config.updates
        first = done * per_update + chunk * config.rows
        rows = slice(first, first + config.rows)
        return Part(
            [self.samples[int(n)] for n in epoch.sample_B[rows]],
            epoch.trajectory.rows(rows),
            epoch.value_B[rows],
            epoch.weight_B[rows],
            int(epoch.places_K[place]),
            place,
            update,
            done > 0,
            epoch.told,
        )

    def file(self, number: int) -> Path:
        """Where this process keeps an epoch's rollouts."""
        name = f"epoch_{number}-{self.group.rank}_of_{self.group.size}.safetensors"
        return self.folder / "rollouts" / name

    def _open(self, number: int) -> Epoch:
        if self.epoch is not None and self.number == number:
            return self.epoch
        path = self.file(number)
        have = torch.tensor([float(_is_of(path, self.config))])
        self.group.average_([have])
        # All or none: whoever plays waits for the others' rewards.
        if float(have) == 1:
            epoch = load(path)
        else:
            epoch = self._play(number)
            save(path, epoch, self.config)
        for old in path.parent.glob(f"epoch_*-{self.group.rank}_of_{self.group.size}.safetensors"):
            if old != path:
                old.unlink()
        self.number, self.epoch = number, epoch
        return epoch

    def members(self, number: int, rank: int) -> list[Member]:
        """Who a process plays in an epoch: update after update, its groups, whole."""
        config = self.config
        found = []
        for local in range(config.updates * config.groups // self.group.size):
            group = number * config.updates * config.groups + local * self.group.size + rank
            sample = self._sample_of(group)
            found += [Member(sample, group, place) for place in range(config.group_size)]
        return found

    def _sample_of(self, group: int) -> int:
        """Every sample comes once before any comes again, in an order drawn for each round."""
        turn, place = divmod(group, len(self.samples))
        generator = torch.Generator().manual_seed(seed_of(self.config.loop.seed, turn, "order"))
        return int(torch.randperm(len(self.samples), generator=generator)[place])

    def _play(self, number: int) -> Epoch:
        config, loop = self.config, self.config.loop
        self.model.eval()
        members = self.members(number, self.group.rank)
        asked = [member._replace(sample=self.samples[member.sample]) for member in members]
        steps = window(config.rollout, loop.seed, number)
        trajectories, numbers = [], defaultdict(list)
        told = {"rollout_s": 0.0, "reward_s": 0.0}
        size = max(config.rows // config.group_size, 1) * config.group_size
        for start in range(0, len(asked), size):
            begun, some = time.monotonic(), asked[start : start + size]
            with torch.autocast(loop.device, torch.bfloat16, enabled=loop.bf16):
                played = play(self.policy, self.model, some, config.rollout, steps, loop.seed)
                with torch.no_grad():
                    frames = self.policy.frames(self.model, played[0])
            between, whose = time.monotonic(), [member.sample for member in some]
            if config.rollout.by_frame:
                told_of = judged_by_frame(self.reward, frames, whose, played[1].num_parts)
            else:
                told_of = judged(self.reward, frames, whose)
            for name, value_B in told_of.items():
                numbers[name].append(value_B.double().cpu())
            trajectories.append(played[1])
            told["rollout_s"] += between - begun
            told["reward_s"] += time.monotonic() - between
        parts = {name: torch.cat(values) for name, values in numbers.items()}
        return self._weighed(number, members, _joined(trajectories), parts, told)

    def _weighed(
        self,
        number: int,
        members: Sequence[Member],
        trajectory: Trajectory,
        parts: dict[str, Tensor],
        told: dict[str, float],
    ) -> Epoch:
        """Advantages over the groups of all processes; of this one's, those rows that are kept."""
        config, rank = self.config, self.group.rank
        reward_RB = self._from_all(parts[TOTAL])
        group_RB = torch.tensor(
            [[m.group for m in self.members(number, r)] for r in range(self.group.size)]
        )
        found = advantages(reward_RB.flatten(), _of_parts(group_RB, reward_RB), config.spread)
        value_RB, live_RB = (x.view(reward_RB.shape) for x in found)
        live_RUB = live_RB.unflatten(1, (config.updates, -1))
        weight_RUB = torch.stack(
            [weights(live_RUB[:, u].flatten()).view(live_RUB[:, u].shape)
             for u in range(config.updates)], dim=1
        )  # fmt: skip
        value_B, weight_B = value_RB[rank], weight_RUB[rank].flatten(0, 1)
        mean_B = value_B.view(len(value_B), -1).mean(1)
        kept = torch.cat(
            [start + best_and_worst(mean_B[start : start + config.group_size], config.keep)
             for start in range(0, len(mean_B), config.group_size)]
        )  # fmt: skip
        sample_B = torch.tensor([member.sample for member in members])
        told = {name: spent / config.updates for name, spent in told.items()}
        told |= _figures(parts, group_RB[rank], live_RB)
        told["rollouts"] = len(members) / config.updates
        return Epoch(
            trajectory.rows(kept), value_B[kept], weight_B[kept], sample_B[kept],
            self._places(number), told,
        )  # fmt: skip

    def _from_all(self, value_B: Tensor) -> Tensor:
        """The values of all processes, [processes, B]."""
        value_RB = value_B.new_zeros(self.group.size, *value_B.shape)
        value_RB[self.group.rank] = value_B
        self.group.average_([value_RB])
        return value_RB * self.group.size

    def _places(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.config.loop.seed, number, "places"))
        drawn = torch.randperm(self.config.num_recorded, generator=generator)
        return drawn[: self.config.num_trained].sort().values


def _of_parts(group_RB: Tensor, reward_RB: Tensor) -> Tensor:
    """Of each reward the number of those that it is compared with, flat: its group, or its group's
    same part."""
    num_parts = reward_RB[0, 0].numel()
    return (group_RB[..., None] * num_parts + torch.arange(num_parts)).flatten()


def _joined(trajectories: Sequence[Trajectory]) -> Trajectory:
    states = torch.cat([one.states_KBX for one in trajectories], dim=1)
    log_probs = torch.cat([one.log_prob_KB for one in trajectories], dim=1)
    return trajectories[0]._replace(states_KBX=states, log_prob_KB=log_probs)


def _figures(parts: dict[str, Tensor], group_B: Tensor, live_RB: Tensor) -> dict[str, float]:
    """Means of the reward's parts over this process's rollouts, the mean spread of its groups, and
    the share of all rollouts that say anything."""
    figures = {name: float(value_B.nanmean()) for name, value_B in parts.items()}
    spreads = [parts[TOTAL][group_B == g].std(0, correction=0) for g in group_B.unique()]
    figures["reward_std"] = float(torch.stack(spreads).nanmean())
    return figures | {"live": float(live_RB.double().mean())}


def save(path: Path, epoch: Epoch, config: GrpoConfig) -> None:
    """An epoch as one file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trajectory = epoch.trajectory
    tensors = {
        "states": trajectory.states_KBX,
        "log_prob": trajectory.log_prob_KB,
        "times": trajectory.plan.times,
        "door": trajectory.plan.door.clone(),  # may be a view of the times
        "value": epoch.value_B,
        "weight": epoch.weight_B,
        "sample": epoch.sample_B,
        "places": epoch.places_K,
    }
    rest = {
        "first": trajectory.first,
        "noise": list(trajectory.noise),
        "leading": trajectory.leading,
        "by_frame": trajectory.by_frame,
        "told": epoch.told,
    }
    header = {"rest": json.dumps(rest), "config": _spelled(config)}
    write_safetensors(path, tensors, header)


def load(path: Path) -> Epoch:
    """What `save` wrote."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        rest = json.loads(file.metadata()["rest"])
    trajectory = Trajectory(
        tensors["states"],
        tensors["log_prob"],
        flow.Schedule(tensors["times"], tensors["door"], "euler"),
        rest["first"],
        Noise(*rest["noise"]),
        rest["leading"],
        rest["by_frame"],
    )
    value, weight, sample, places = (
        tensors[name] for name in ("value", "weight", "sample", "places")
    )
    return Epoch(trajectory, value, weight, sample, places, rest["told"])


def _is_of(path: Path, config: GrpoConfig) -> bool:
    """Whether the file is there, and of a run with these numbers."""
    if not path.exists():
        return False
    with safe_open(path, framework="pt") as file:
        return bool(file.metadata()["config"] == _spelled(config))


def _spelled(config: GrpoConfig) -> str:
    """All that rollouts depend on; how long the run shall be is not among it."""
    loop = replace(config.loop, steps=1, minutes=None)
    return json.dumps(asdict(replace(config, loop=loop)), sort_keys=True)
