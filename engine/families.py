"""Families: one transformer, and three ways to show it its subjects.

    identity   ID-Crafter: a stream of K and V beside the text's, computed once (`engine.dit`).
               Without subjects, or with weights that have no stream, it is plain Wan.
    phantom    Phantom: the references are latent frames behind the video's own. They take part in
               every forward, also in the one for the negative prompt, where they are zeros.
    vace       VACE: the references stand in front, in the noisy latents and in the context that
               context blocks read (`engine.vace`), under both prompts.

Everything that differs between them stands here, so that the sampler and the solver know none.
Sources: Phantom-video/Phantom `generate.py` (load_ref_images) and `phantom_wan/subject2video.py`
(its loop), arXiv 2502.11079; ali-vilab/VACE `vace/models/wan/wan_vace.py`, arXiv 2503.07598.

Legend: B requests, C channels, F latent frames, S subjects, H W latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.dit import Condition, Subjects, WanDiT
from engine.encodings import STANDARD_FIT, EncodingsBatch, Fit
from engine.sample import Conditions
from engine.spec import Guidance
from engine.stream import SubjectInputs
from engine.vace import VaceDiT

FAMILIES = ("identity", "phantom", "vace")
# Both others pad with white and cut sides to whole pixels, each in its own way.
FITS = {
    "identity": STANDARD_FIT,
    "phantom": Fit(pad=255, sides="ratio"),
    "vace": Fit(pad=255, sides="scale", bilinear=True),
}


def conditions(
    family: str,
    dit: WanDiT,
    batch: EncodingsBatch,
    negative: EncodingsBatch,
    guidance: Guidance,
    context_BCFHW: Tensor | None = None,
) -> Conditions:
    """All that guidance needs of text and subjects, computed once.

    Args:
        negative: encodings of the negative prompts, as many rows as `batch` or one for all.
        context_BCFHW: for vace, and only there, see `engine.vace.context_latents`.

    Raises:
        ValueError: requests of one batch with different numbers of subjects, under phantom.
    """
    assert family in FAMILIES, family
    text_BTM = negative.text_BTM.expand(len(batch.text_BTM), -1, -1)
    other = None if guidance.is_off else text_BTM
    if family == "vace":
        assert context_BCFHW is not None
        found = _vace(dit, batch, other, context_BCFHW)
    else:
        found = (_phantom if family == "phantom" else _identity)(dit, batch, other)
    known = found._asdict()
    return Conditions(**{name: known[name] for name in guidance.weighed})


def _identity(dit: WanDiT, batch: EncodingsBatch, negative_BTM: Tensor | None) -> Conditions:
    """The negative prompt has no subjects: its forwards cost what plain Wan's do."""
    subjects: Subjects = batch.subjects()
    if isinstance(subjects, SubjectInputs) and not dit.config.stream_time:
        subjects = dit.subject_stream(*subjects)
    words = dit.text_kv(batch.text_BTM)
    full = dit.condition(words, subjects)
    if negative_BTM is None:
        return Conditions(full)
    empty = dit.text_kv(negative_BTM)
    if subjects is None:
        return Conditions(full, dit.condition(empty))
    image, text = dit.condition(empty, subjects), dit.condition(words)
    return Conditions(full, dit.condition(empty), image, text)


def _phantom(dit: WanDiT, batch: EncodingsBatch, negative_BTM: Tensor | None) -> Conditions:
    """The negative prompt's references are zeros, as many as there are."""
    tail_BCFHW = None
    if bool(batch.subject_mask_BS.any()):
        if not bool(batch.subject_mask_BS.all()):
            raise ValueError("requests of one batch must have equally many subjects")
        tail_BCFHW = batch.refs_BSCHW.transpose(1, 2)
    full = Condition(dit.text_kv(batch.text_BTM), tail_BCFHW=tail_BCFHW)
    if negative_BTM is None:
        return Conditions(full)
    empty = Condition(dit.text_kv(negative_BTM))
    if tail_BCFHW is None:
        return Conditions(full, empty)
    zeros = torch.zeros_like(tail_BCFHW)
    image, text = empty._replace(tail_BCFHW=tail_BCFHW), full._replace(tail_BCFHW=zeros)
    return Conditions(full, empty._replace(tail_BCFHW=zeros), image, text)


def _vace(
    dit: WanDiT, batch: EncodingsBatch, negative_BTM: Tensor | None, context_BCFHW: Tensor
) -> Conditions:
    """Both prompts see the same context: guidance weighs the words only, and subjects have no pull
    of their own."""
    assert isinstance(dit, VaceDiT)
    rows = [batch.text_BTM] if negative_BTM is None else [batch.text_BTM, negative_BTM]
    return Conditions(
        *(Condition(dit.text_kv(row), context=dit.context(context_BCFHW, row)) for row in rows)
    )


def num_leading(family: str, num_subjects: int) -> int:
    """Latent frames in front of the video's own, which are dropped when it is done."""
    return num_subjects if family == "vace" else 0


def noise(
    family: str, seeds: Sequence[int], shape: tuple[int, int, int, int], num_subjects: int
) -> Tensor:
    """Noise [B, C, F, H, W] fp32, each row from its own seed, drawn on the CPU: alike on every
    device.

    `shape` is [C, F, H, W] of the video. VACE has noise for its references as well; Phantom draws
    it and never uses it: with the same seed the rest is the same only if it is drawn here too.
    """
    channels, num_frames, *sides = shape
    drawn = num_frames + (num_subjects if family != "identity" else 0)
    rows = [
        torch.randn(channels, drawn, *sides, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    kept = num_frames + num_leading(family, num_subjects)
    return torch.stack(rows)[:, :, :kept]
