"""Prompts that describe whom they name: Identity-GRPO's prompt tuning, by the VLM of the model.

    "@anna waves" + picture of anna ─ VLM ─▶ "@anna, the green star with three eyes, waves"

The paper has Qwen2.5-VL-7B rewrite its prompts so that they describe the characters in the
pictures; neither words nor code of it are published. Here the VLM describes each picture alone, and
its answer is put behind the name's first mention, so that nothing else of a prompt changes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from engine.vlm import VLM, Picture
from training.vlm_data import DESCRIBE
from training.world.clip import Clip


def tuned(prompt: str, names: Sequence[str], pictures: Sequence[Picture], vlm: VLM) -> str:
    """The prompt with a description behind the first mention of each name, as the captions of style
    "both" have them; a name that is described already is left alone."""
    for name, picture in zip(names, pictures, strict=True):
        mention = re.search(rf"(?<!\w)@{re.escape(name)}(?!\w)", prompt)
        if mention is None or prompt.startswith(", the ", mention.end()):
            continue
        told = vlm.describe([picture], DESCRIBE)
        end = mention.end()
        prompt = f"{prompt[:end]}, the {told},{prompt[end:]}" if told else prompt
    return prompt


def tuned_clip(clip: Clip, vlm: VLM) -> Clip:
    """A clip of the world whose prompt describes its cast; its pictures are looked at, not its
    script."""
    prompt = tuned(clip.caption.prompt, clip.caption.names, list(clip.references), vlm)
    return replace(clip, caption=replace(clip.caption, prompt=prompt))
