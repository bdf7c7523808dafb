"""`troupe train NAME`: run a recipe, or list them."""

from typing import Annotated

import typer
from rich.table import Table

from troupe.terminal import fail, out


def train(
    name: Annotated[str | None, typer.Argument(help="Recipe; none lists them.")] = None,
) -> None:
    """Run a training recipe; it resumes where it was stopped. Everything lands in runs/NAME/."""
    from training.recipes import RECIPES

    if name is None:
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for recipe_name, recipe in RECIPES.items():
            table.add_row(recipe_name, recipe.about)
        out.print(table)
        return
    if name not in RECIPES:
        fail(f"There is no recipe {name!r}. There are: {', '.join(RECIPES)}.", "troupe train")
    from engine.errors import TroupeError
    from training.run import main

    try:
        main(name)
    except (FileNotFoundError, TroupeError) as error:  # what a recipe needs is not there, or broken
        fail(f"{name}: {error}", "troupe train")
