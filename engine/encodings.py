"""What the encoders make of a request, as plain tensors: once per request, kept by content.

Legend: B batch, T text tokens, S subjects, C H W latents of a reference, V VLM tokens, M features.

    prompt, spans ─ text ─▶ text_TM, tags_SM
    references ─ letterbox ─ VAE ─▶ refs_SCHW
    prompt, names, references ─ VLM ─▶ vlm_VM
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.errors import BackendError, SpecError
from engine.spec import PAD_GREY, Reference, Span
from engine.stream import SubjectInputs
from engine.text import TextEncoder
from engine.vae import VAE, to_pixels
from engine.vlm import VLM

# Part of every key: raise it whenever the same request would be encoded differently.
PREPROCESSING = 2


class Fit(NamedTuple):
    """How a reference is letter-boxed. pad: grey of the margins, 0 to 255. sides: how they become
    whole pixels, "round", or cut as Phantom does (`generate.py` load_ref_images: "ratio", a side
    times the picture's ratio) or as VACE does ("scale"). bilinear: the filter, without
    anti-aliasing, on pixels as numbers (VACE); otherwise Lanczos."""

    pad: int = PAD_GREY
    sides: str = "round"
    bilinear: bool = False


STANDARD_FIT = Fit()
Recall = Callable[[Reference, Callable[[], Tensor]], Tensor]


@dataclass(frozen=True)
class Encoders:
    """The three doors. Without a VLM requests carry no VLM tokens.

    Without a text encoder, requests are encoded elsewhere (`Runtime.encoders`).
    """

    text: TextEncoder | None
    vae: VAE
    vlm: VLM | None

    @property
    def words(self) -> TextEncoder:
        """The text encoder. Raises BackendError if it is not here."""
        if self.text is None:
            raise BackendError("encoders=remote: no text encoder is here; hand over encodings")
        return self.text

    @property
    def dtype(self) -> str:
        """In which text encoder and VLM compute, such as "float32"."""
        return str(self.words.model.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Encodings:
    """One request. Without subjects the last three have length 0. All fp32, on the CPU.

    text_TM: zero-padded to text_len. refs_SCHW: latents of the references. tags_SM: text features
    pooled over each subject's mentions. vlm_VM: last hidden states of the VLM.
    """

    text_TM: Tensor
    refs_SCHW: Tensor
    tags_SM: Tensor
    vlm_VM: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """By field name, for a safetensors file; `Encodings(**tensors)` is the inverse."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Encoded(NamedTuple):
    """A request and its negative prompt."""

    full: Encodings
    negative: Encodings


@dataclass(frozen=True)
class EncodingsBatch:
    """Requests stacked; masks are True where something is real."""

    text_BTM: Tensor
    refs_BSCHW: Tensor
    tags_BSM: Tensor
    subject_mask_BS: Tensor
    vlm_BVM: Tensor
    vlm_mask_BV: Tensor

    def subjects(self) -> SubjectInputs | None:
        """Input of the identity stream; None without any. Masks that hide nothing are dropped."""
        if not bool(self.subject_mask_BS.any()):
            return None
        whole = bool(self.subject_mask_BS.all()), bool(self.vlm_mask_BV.all())
        has_vlm = self.vlm_BVM.shape[1] > 0
        return SubjectInputs(
            refs_BSCHW=self.refs_BSCHW,
            tags_BSM=self.tags_BSM,
            subject_mask_BS=None if whole[0] else self.subject_mask_BS,
            vlm_BVM=self.vlm_BVM if has_vlm else None,
            vlm_mask_BV=None if whole[1] else self.vlm_mask_BV,
        )

    def to(self, device: torch.device | str) -> EncodingsBatch:
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self)}
        return replace(self, **moved)


def encode(
    text: str,
    spans: Sequence[Sequence[Span]],
    references: Sequence[Reference],
    encoders: Encoders,
    size: tuple[int, int],
    fit: Fit = STANDARD_FIT,
    recall: Recall | None = None,
) -> Encodings:
    """Encodes one request.

    Args:
        text: the prompt as the encoders read it, `engine.spec.text_of`.
        spans: of each subject, every mention in `text`; same order as `references`.
        size: width and height in px to which references are letter-boxed, in the way of `fit`.
        recall: gives a reference's latents where another request had them made, or makes them.

    Raises:
        SpecError: a subject's mentions all lie behind the tokens that the text encoder reads.
    """
    assert len(spans) == len(references)
    words = encoders.words
    features_BTM, tags = words.encode_with_tags([text], [spans])
    for reference, tag in zip(references, tags[0], strict=True):
        if not bool(tag.any()):
            length = words.config.text_len
            raise SpecError(
                "prompt", f"is too long: @{reference.name} first comes after {length} tokens"
            )
    pictures = [letterbox(reference.to_image(), *size, fit) for reference in references]
    return Encodings(
        text_TM=features_BTM[0].cpu(),
        refs_SCHW=_latents(references, pictures, encoders.vae, size, recall),
        tags_SM=tags[0].reshape(len(references), features_BTM.shape[2]).cpu(),
        vlm_VM=_vlm_tokens(text, references, pictures, encoders.vlm).cpu(),
    )


def stack(
    encodings: Sequence[Encodings], num_subjects: int = 0, num_vlm: int = 0
) -> EncodingsBatch:
    """Pads to the widest request, or to the given widths where static shapes are wanted."""
    num_subjects = max(num_subjects, *(len(e.refs_SCHW) for e in encodings))
    num_vlm = max(num_vlm, *(len(e.vlm_VM) for e in encodings))
    return EncodingsBatch(
        text_BTM=torch.stack([e.text_TM for e in encodings]),
        refs_BSCHW=torch.stack([_pad(e.refs_SCHW, num_subjects) for e in encodings]),
        tags_BSM=torch.stack([_pad(e.tags_SM, num_subjects) for e in encodings]),
        subject_mask_BS=_mask([len(e.refs_SCHW) for e in encodings], num_subjects),
        vlm_BVM=torch.stack([_pad(e.vlm_VM, num_vlm) for e in encodings]),
        vlm_mask_BV=_mask([len(e.vlm_VM) for e in encodings], num_vlm),
    )


def picture_key(
    weights: str, reference: Reference, size: tuple[int, int], fit: Fit = STANDARD_FIT
) -> str:
    """Content digest of what a reference's latents depend on, in hex: not on the request."""
    content = ["latents", PREPROCESSING, weights, reference.digest(), list(size), list(fit)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def only_latents(latent_CHW: Tensor) -> Encodings:
    """Of one picture, as a cache keeps them."""
    nothing = torch.zeros(0, 0)
    return Encodings(nothing, latent_CHW[None], nothing, nothing)


def key(
    weights: str,
    text: str,
    spans: Sequence[Sequence[Span]],
    references: Sequence[Reference],
    size: tuple[int, int],
    fit: Fit = STANDARD_FIT,
    dtype: str = "float32",
) -> str:
    """Content digest of everything that `encode` reads, in hex.

    The pixels, names and order of the references count, and so do the prompt (tags and VLM tokens
    depend on it), the digest of the weights and the precision in which the encoders compute.
    """
    content = {
        "preprocessing": PREPROCESSING,
        "weights": weights,
        "text": text,
        "spans": [[list(span) for span in spans_of_one] for spans_of_one in spans],
        "references": [[reference.name, reference.digest()] for reference in references],
        "size": list(size),
        "fit": list(fit),
        "dtype": dtype,
    }
    spelled = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def letterbox(image: Image.Image, width: int, height: int, fit: Fit = STANDARD_FIT) -> Image.Image:
    """The whole picture at width x height px: aspect kept, padded evenly."""
    fitted = _fitted(image.size, (width, height), fit.sides)
    if fitted == (width, height) == image.size:
        return image.convert("RGB")
    canvas = Image.new("RGB", (width, height), (fit.pad,) * 3)
    inside = _bilinear(image, fitted) if fit.bilinear else _lanczos(image, fitted)
    canvas.paste(inside, ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return canvas


def _lanczos(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _bilinear(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """As torch's interpolation does it; upstream does not round to 8 bits, which we do."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, (size[1], size[0]), mode="bilinear", align_corners=False)
    return Image.fromarray(resized[0].permute(1, 2, 0).round().to(torch.uint8).numpy())


def _fitted(size: tuple[int, int], into: tuple[int, int], sides: str) -> tuple[int, int]:
    """Width and height of a picture that is made as large as fits."""
    assert sides in ("round", "ratio", "scale"), sides
    (width, height), (most_x, most_y) = size, into
    if sides == "ratio":
        ratio = width / height
        wide = ratio > most_x / most_y
        fitted = (most_x, int(most_x / ratio)) if wide else (int(most_y * ratio), most_y)
    else:
        scale, whole = min(most_x / width, most_y / height), int if sides == "scale" else round
        fitted = (min(most_x, whole(width * scale)), min(most_y, whole(height * scale)))
    return max(1, fitted[0]), max(1, fitted[1])


def _latents(
    references: Sequence[Reference],
    pictures: Sequence[Image.Image],
    vae: VAE,
    size: tuple[int, int],
    recall: Recall | None,
) -> Tensor:
    """Each picture alone, as a clip of one frame: [S, C, H, W]."""
    factor = vae.config.spatial_factor
    if not pictures:
        return torch.zeros(0, vae.config.z_dim, size[1] // factor, size[0] // factor)
    # One at a time: a batch could round differently from the single picture.
    latents = []
    for reference, picture in zip(references, pictures, strict=True):
        make = partial(_latent, picture, vae)
        latents.append(make() if recall is None else recall(reference, make))
    return torch.stack(latents)


def _latent(picture: Image.Image, vae: VAE) -> Tensor:
    frame_BTHWC = torch.from_numpy(np.array(picture))[None, None]
    return vae.encode(to_pixels(frame_BTHWC))[0, :, 0]


def _vlm_tokens(
    text: str, references: Sequence[Reference], pictures: Sequence[Image.Image], vlm: VLM | None
) -> Tensor:
    if vlm is None:
        return torch.zeros(0, 0)
    if not pictures:
        return torch.zeros(0, vlm.config.hidden_size)
    return vlm.tokens(text, pictures, [reference.name for reference in references])


def _pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, x.new_zeros(length - len(x), *x.shape[1:])])


def _mask(lengths: Sequence[int], width: int) -> Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]
