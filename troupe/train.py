"""`troupe train NAME`: run a recipe, or list them."""

from typing import Annotated

import typer

from troupe.terminal import fail, out


def train(
    name: Annotated[str | None, typer.Argument(help="Recipe; none lists them.")] = None,
) -> None:
    """Run a training recipe; it resumes where it was stopped. Everything lands in runs/NAME/."""
    from training.recipes import RECIPES

    if name is None:
        for recipe in RECIPES:
            out.print(recipe)
        return
    if name not in RECIPES:
        fail(f"There is no recipe {name!r}. There are: {', '.join(RECIPES)}.", "troupe train")
    from engine.errors import TroupeError
    from training.run import main

    try:
        main(name)
    except (FileNotFoundError, TroupeError) as error:  # what a recipe needs is not there, or broken
        fail(f"{name}: {error}", "troupe train")
