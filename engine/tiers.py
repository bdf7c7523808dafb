"""Tiers: how much of every forward is really computed.

    exact   all of it; the default
    fast    First-Block cache: where the first block changes the video nearly as it did in the last
            full forward, what all other blocks added then is added again, and they do not run

Sources: chengzeyi/ParaAttention (README, "First Block Cache"), diffusers
`hooks/first_block_cache.py`, to whose numbers this is tested; the idea is TeaCache's, arXiv
2411.19108. Each of a run's conditions is compared with its own past only.

The past is that of one run and of one request. It is never stored (0.4 GB a condition at 1.3B,
480p): a run that goes on (`engine.state`) makes it again, by one full forward of each condition at
the latents and the time of its last one, and so ends in the bytes of the run that was not stopped.

Legend: B batch, C channels, F H W latents, L video tokens, M model dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from engine.compile import twin_with
from engine.dit import Condition, WanDiT
from engine.errors import SpecError
from engine.sample import Velocity
from engine.spec import TIERS

# Mean change of the first block's residual, relative, below which the past serves (bench.tiers).
THRESHOLDS = {"fast": 0.1}


class Moment(NamedTuple):
    """Where a condition's last full forward was: all that its past is made of."""

    x_BCFHW: Tensor
    t_B: Tensor


class Tally(NamedTuple):
    """How far a run is: forwards asked for and computed in full; in a lossy tier also the moments
    of its conditions, in the order of their first forwards."""

    asked: int = 0
    computed: int = 0
    moments: tuple[Moment, ...] = ()


NEW = Tally()


class Run:
    """The velocity of one run in a tier. Counts its forwards: `asked`, and `computed` in full.

    tally: of the run that this one goes on from; its conditions must come in the same order.

    Raises:
        SpecError: a lossy tier, where a step is one program or one module, the model has context
            blocks or one block only, or the sequence is shared out over processes.
    """

    def __init__(
        self,
        velocity: Velocity,
        tier: str = "exact",
        threshold: float | None = None,
        tally: Tally = NEW,
    ) -> None:
        assert tier in TIERS, tier
        self.tier = tier
        self.asked, self.computed = tally.asked, tally.computed
        self._velocity = velocity
        self._past: dict[int, tuple[Condition, _Branch]] = {}
        self._moments: dict[int, Moment] = {}
        self._ahead = list(tally.moments)  # of conditions that have not come yet
        if tier == "exact":
            return
        # Eager and regionally compiled steps are methods of a model; packages are not.
        dit = getattr(velocity, "__self__", None)
        if not isinstance(dit, WanDiT):
            modes = "compile modes 'eager' and 'inductor', without offload=group"
            raise SpecError("tier", f"{tier!r} goes with {modes}")
        if dit.config.vace_layers:
            raise SpecError("tier", f"{tier!r} knows no context blocks, as this model has them")
        if len(dit.blocks) < 2:
            raise SpecError("tier", f"{tier!r} skips all blocks but the first: this model has one")
        if dit.split is not None:
            # Each process would decide by its own part of the video.
            raise SpecError("tier", f"{tier!r} knows no sequence shared out over processes")
        self._dit = dit
        self._threshold = THRESHOLDS[tier] if threshold is None else threshold

    def __call__(self, x_BCFHW: Tensor, t_B: Tensor, condition: Condition) -> Tensor:
        self.asked += 1
        if self.tier == "exact":
            self.computed += 1
            return self._velocity(x_BCFHW, t_B, condition)
        # Neighbours in a batch must not decide for each other.
        assert len(x_BCFHW) == 1, "a lossy tier takes one request at a time"
        branch = self._branch(condition)
        v_BCFHW = branch.denoise(x_BCFHW, t_B, condition)
        if not branch.past.serves:
            self.computed += 1
            self._moments[id(condition)] = Moment(x_BCFHW, t_B)
        return v_BCFHW

    @property
    def tally(self) -> Tally:
        """Between two steps: what a run needs to go on from here."""
        return Tally(self.asked, self.computed, (*self._moments.values(), *self._ahead))

    def _branch(self, condition: Condition) -> _Branch:
        if id(condition) not in self._past:
            # The condition is kept beside, so that no other one can come by its number.
            branch = _Branch(self._dit, self._threshold)
            self._past[id(condition)] = condition, branch
            if self._ahead:
                moment = self._moments[id(condition)] = self._ahead.pop(0)
                branch.denoise(*moment, condition)
        return self._past[id(condition)][1]


def served(velocity: Velocity, tiers: Sequence[str] = TIERS) -> tuple[str, ...]:
    """Those of the tiers in which this velocity can run."""
    return tuple(tier for tier in tiers if _can_run(velocity, tier))


def _can_run(velocity: Velocity, tier: str) -> bool:
    try:
        Run(velocity, tier)
    except SpecError:
        return False
    return True


class _Past:
    """What one condition's forwards leave for the next: what the first block changed, and what the
    others added. `serves`: whether it does in the forward at hand."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.serves = False
        self.change_BLM: Tensor | None = None
        self.first_BLM: Tensor | None = None
        self.added_BLM: Tensor | None = None

    def begin(self, change_BLM: Tensor, first_BLM: Tensor) -> Tensor:
        """Behind the first block: the last block's result if the past serves, else its own."""
        self.serves = self._is_near(change_BLM)
        if self.serves:
            assert self.added_BLM is not None
            return first_BLM + self.added_BLM
        self.change_BLM, self.first_BLM = change_BLM, first_BLM
        return first_BLM

    def end(self, last_BLM: Tensor) -> None:
        """Behind the last block of a full forward."""
        assert self.first_BLM is not None
        self.added_BLM, self.first_BLM = last_BLM - self.first_BLM, None

    def _is_near(self, change_BLM: Tensor) -> bool:
        if self.change_BLM is None:
            return False
        moved = (change_BLM - self.change_BLM).abs().mean()
        return bool(moved < self.threshold * self.change_BLM.abs().mean())


class _Branch:
    """A twin of the model whose blocks look at a past; shares every parameter with the model."""

    def __init__(self, dit: WanDiT, threshold: float) -> None:
        self.past = _Past(threshold)
        first, *others = dit.blocks.children()
        blocks = [
            _First(first, self.past),
            *(_Other(block, self.past, block is others[-1]) for block in others),
        ]
        self.denoise = twin_with(dit, {"blocks": blocks}).denoise


class _First(nn.Module):
    def __init__(self, block: nn.Module, past: _Past) -> None:
        super().__init__()
        self.block, self.past = block, past

    def forward(self, x_BLM: Tensor, *rest: Any) -> Tensor:
        y_BLM = self.block(x_BLM, *rest)
        return self.past.begin(y_BLM - x_BLM, y_BLM)


class _Other(nn.Module):
    def __init__(self, block: nn.Module, past: _Past, is_last: bool) -> None:
        super().__init__()
        self.block, self.past, self.is_last = block, past, is_last

    def forward(self, x_BLM: Tensor, *rest: Any) -> Tensor:
        if self.past.serves:
            return x_BLM
        y_BLM = cast(Tensor, self.block(x_BLM, *rest))
        if self.is_last:
            self.past.end(y_BLM)
        return y_BLM
