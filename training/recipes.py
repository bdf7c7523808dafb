"""Every training run by name. `troupe train NAME` takes a name and nothing else.

A recipe's numbers stand in the module that it calls, beside the code that they steer. To run a
variation, write it down as another line here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module


def _in(module: str, function: str = "run") -> Callable[[], None]:
    """A recipe that loads its module only when it runs, so that listing them needs no torch."""

    def recipe() -> None:
        getattr(import_module(f"training.{module}"), function)()

    return recipe


RECIPES: dict[str, Callable[[], None]] = {
    "miniature_vae": _in("vae"),
    "miniature_text": _in("text"),
    "miniature_vlm": _in("vlm"),
    "miniature_identity": _in("identity"),
    "miniature_shards": _in("sft_miniature", "run_shards"),
    "miniature_latent_reader": _in("latent_reader"),
    "miniature_sft_small": _in("sft_miniature", "run_small"),
    "miniature_sft_still": _in("sft_miniature", "run_still"),
    "miniature_sft": _in("sft_miniature"),
    "miniature_lora": _in("sft_miniature", "run_lora"),
    "miniature_publish": _in("publish"),
    "sft_1_3b": _in("sft_wan", "run_1_3b"),
    "sft_14b": _in("sft_wan", "run_14b"),
}
