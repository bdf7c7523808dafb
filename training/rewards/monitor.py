"""Is the reward being cheated? An alarm for when it rises and what it stands for does not."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

Row = Mapping[str, float]


@dataclass
class Monitor:
    """Watches the reward beside held-out figures that are no part of it, from look to look.

    better: names of figures that should rise with the reward; worse: of such that should not rise
    (copy-paste), each with the spread below which a change means nothing. An alarm is given when
    the reward has gained more than `gain` since the first look while one of them has gone the wrong
    way by more than its spread, `patience` looks in a row.
    """

    better: Mapping[str, float]
    worse: Mapping[str, float] = field(default_factory=dict)
    gain: float = 0.01
    patience: int = 2
    first: tuple[float, Row] | None = None
    in_a_row: int = 0

    def look(self, reward: float, figures: Row) -> list[str]:
        """The figures that part ways with the reward, by name; warns of them."""
        if self.first is None:
            self.first = reward, dict(figures)
        before, start = self.first
        apart = [n for n, spread in self.better.items() if figures[n] < start[n] - spread]
        apart += [n for n, spread in self.worse.items() if figures[n] > start[n] + spread]
        risen = reward - before > self.gain
        self.in_a_row = self.in_a_row + 1 if risen and apart else 0
        if self.in_a_row == self.patience:
            text = ", ".join(f"{n} {start[n]:.3g} -> {figures[n]:.3g}" for n in apart)
            warnings.warn(
                f"the reward rose from {before:.3g} to {reward:.3g}, but {text}", stacklevel=2
            )
        return apart if risen else []
