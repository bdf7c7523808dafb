"""Every training run by name. `troupe train NAME` takes a name and nothing else.

A recipe's numbers stand in the module that it calls, beside the code that they steer. To run a
variation, write it down as another line here.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Recipe:
    """A function of a module in `training/`, loaded only when it runs, so that listing needs no
    torch. about: what it makes, in a line."""

    module: str
    about: str
    function: str = "run"

    def __call__(self) -> None:
        getattr(import_module(f"training.{self.module}"), self.function)()


RECIPES = {
    "miniature_vae": Recipe("vae", "the video autoencoder"),
    "miniature_text": Recipe("text", "the text encoder, with its tokenizer"),
    "miniature_vlm": Recipe("vlm", "the vision-language model"),
    "miniature_identity": Recipe("identity", "the instruments: identity, detector, oracle"),
    "miniature_shards": Recipe("sft_miniature", "stills and clips, encoded", "run_shards"),
    "miniature_latent_reader": Recipe("latent_reader", "who is in latents, for loss and guidance"),
    "miniature_readers": Recipe("readers", "both, for guidance, on guesses of what ships"),
    "miniature_locator": Recipe("locator", "where somebody stands in latents"),
    "miniature_sft_small": Recipe("sft_miniature", "the generator, small clips", "run_small"),
    "miniature_sft_still": Recipe("sft_miniature", "then stills: who is who", "run_still"),
    "miniature_sft": Recipe("sft_miniature", "then clips at full size"),
    "miniature_sft_more": Recipe("sft_miniature", "what ships, on new clips", "run_more"),
    "miniature_lora": Recipe("sft_miniature", "adapters on the result", "run_lora"),
    "grpo_miniature": Recipe("grpo_miniature", "reinforcement of the result, on identity"),
    "miniature_publish": Recipe("publish", "the model folder of all of these"),
    "miniature_publish_anyway": Recipe("publish", "the same, be it worse", "run_anyway"),
    "grpo_1_3b": Recipe("grpo_wan", "reinforcement of Wan 1.3B, on GPUs", "run_1_3b"),
    "grpo_14b": Recipe("grpo_wan", "reinforcement of Wan 14B, adapters, on GPUs", "run_14b"),
    "grpo_phantom_1_3b": Recipe(
        "grpo_wan", "Identity-GRPO on Phantom 1.3B, on GPUs", "run_phantom_1_3b"
    ),
    "sft_1_3b": Recipe("sft_wan", "Wan 1.3B with the identity stream, on GPUs", "run_1_3b"),
    "sft_14b": Recipe("sft_wan", "Wan 14B with the identity stream, on GPUs", "run_14b"),
}
