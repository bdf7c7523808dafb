"""Runs one recipe: `troupe train NAME`, or `python -m training.run NAME`."""

from __future__ import annotations

import sys

from training.recipes import RECIPES


def main(name: str) -> None:
    """Runs the recipe to its end; started again, it resumes.

    Raises:
        ValueError: there is no recipe of this name.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; there are: {', '.join(RECIPES)}")
    RECIPES[name]()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m training.run NAME, one of: {', '.join(RECIPES)}")
    main(sys.argv[1])
