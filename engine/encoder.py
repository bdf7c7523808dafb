"""Requests in, encodings out: the half of an engine that may stand on another machine.

    Spec, References ─ Encoder ─▶ Encoded ─ to_bytes ─▶ … ─ from_bytes ─▶ Engine.generate(encoded=)

With `Runtime.encoders` = "remote" an Engine loads neither text encoder nor VLM (26 GB in bf16 for
the published ones) and is handed what an Encoder of the same files has made. In fp32 on the
same kind of processor the video is the same, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine import families, folders, reader
from engine.cache import EncodingCache
from engine.encodings import (
    Encoded,
    Encoders,
    Encodings,
    encode,
    key,
    only_latents,
    picture_key,
)
from engine.errors import BackendError, CheckpointError, SpecError
from engine.loading import load_encoders
from engine.placement import placed
from engine.presets import Preset
from engine.runtime import Runtime
from engine.spec import Reference, Span, Spec, clean, text_of


class Encoder:
    """Text encoder, VLM and VAE with the cache. `digest` names their weights; it is part of every
    cache key."""

    def __init__(
        self,
        encoders: Encoders,
        preset: Preset,
        digest: str,
        cache: EncodingCache | None = None,
    ) -> None:
        self.encoders = encoders
        self.preset = preset
        self.digest = digest
        self.cache = cache or EncodingCache()

    @classmethod
    def load(
        cls, folder: Path, cache: EncodingCache | None = None, runtime: Runtime | None = None
    ) -> Encoder:
        """Loads a model folder without its DiT; every file is verified first, the DiT's too.

        Raises:
            CheckpointError: a file is missing, altered, unlisted or of another shape.
            BackendError: this machine cannot do what the runtime asks.
        """
        runtime = runtime or Runtime(encoders="only")
        if runtime.encoders != "only":
            raise BackendError(f"an Encoder is loaded with encoders=only, not {runtime.encoders}")
        folder, place = Path(folder), placed(runtime)
        with folders.held(folder) as (manifest, view):
            preset = manifest.resolve()
            folders.require(manifest, needed_files(preset))
            encoders = load_encoders(view, preset, runtime, place)
        return cls(encoders, preset, digest_of(manifest), cache)

    def encode(
        self, spec: Spec, references: Sequence[Reference], scope: str = "", owner: str = ""
    ) -> Encoded:
        """Encodings of the request and of its negative prompt, from the cache where known.

        scope, owner: whose they are and for what, see `engine.cache`.

        Raises:
            SpecError: names and pictures differ, or a subject is named behind the tokens that the
                text encoder reads.
            BackendError: there is no text encoder here.
        """
        pictures = by_name(spec, references)
        ordered = [pictures[name] for name in spec.names]
        text, spans = text_of(spec.prompt, spec.names)
        size = self.preset.reference_size(spec.width, spec.height)

        fit = families.FITS[self.preset.family]

        def recall(reference: Reference, make: Callable[[], Tensor]) -> Tensor:
            """A subject that is kept is asked for with many prompts: its latents are the same."""
            place = picture_key(self.digest, reference, size, fit)
            found = self.cache.get_or(place, lambda: only_latents(make()), scope, owner)
            return found.refs_SCHW[0]

        def kept(
            text: str, spans: Sequence[Sequence[Span]], pictures: Sequence[Reference]
        ) -> Encodings:
            return self.cache.get_or(
                key(self.digest, text, spans, pictures, size, fit, self.encoders.dtype),
                lambda: encode(text, spans, pictures, self.encoders, size, fit, recall),
                scope,
                owner if text else "",  # no words are nobody's
            )

        negative = clean(spec.negative_prompt).strip()
        return Encoded(kept(text, spans, ordered), kept(negative, (), ()))


def by_name(spec: Spec, references: Sequence[Reference]) -> dict[str, Reference]:
    """The pictures by the names that they are for. Raises SpecError unless both are the same."""
    found = {reference.name: reference for reference in references}
    if len(found) != len(references) or set(found) != set(spec.names):
        raise SpecError("subjects", "there must be one picture for each name, and no other")
    return found


def digest_of(manifest: folders.Manifest) -> str:
    """What names a model's encoders: sha256, in hex, of their files' digests and all configs.
    Models that differ in the transformer alone have the same, and may share encodings."""
    names = set(needed_files(manifest.resolve())) - {folders.DIT, reader.FILE}
    told = {name: manifest.files.get(name) for name in names}
    content = json.dumps([manifest.preset, manifest.configs, told], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def needed_files(preset: Preset) -> tuple[str, ...]:
    """The files that a model folder of this preset must have."""
    files = ("dit.safetensors", "vae.safetensors", "text.safetensors", "text_tokenizer.json")
    vlm = ("vlm.safetensors", "vlm_tokenizer.json") if preset.dit.use_vlm else ()
    return files + vlm + ((reader.FILE,) if preset.limits.max_identity_scale > 0 else ())


def to_bytes(encoded: Encoded) -> bytes:
    """As a safetensors file."""
    return save(
        {
            f"{part}.{name}": x.contiguous()
            for part, encodings in encoded._asdict().items()
            for name, x in encodings.tensors().items()
        }
    )


def from_bytes(data: bytes) -> Encoded:
    """What `to_bytes` wrote. Raises CheckpointError if it is anything else."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in Encoded._fields}
    try:
        for path, x in load(data).items():
            part, _, name = path.partition(".")
            parts[part][name] = x
        return Encoded(**{part: Encodings(**tensors) for part, tensors in parts.items()})
    except (SafetensorError, KeyError, TypeError) as error:
        raise CheckpointError(f"these are no encodings: {error}") from error
