"""The registry: published models, each an immutable folder under its own digest, and channels.

    models/<digest>/     as `engine.folders` describes it; manifest.json is written last
      manifest.json  manifest.sig  *.safetensors  *_tokenizer.json
    channels/<name>      which model is live, see `engine.channels`

    Address    s3://bucket/prefix?key=publisher.pem#stable     a channel
               /srv/models#3f2a9c0d41                          a digest, or the start of one

With a key, every model must be signed with its private half (`engine.signatures`). Nothing is
believed that a store says: the manifest is the one whose digest was asked for, its files have the
digests that it lists, and no other file lies beside them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from engine import folders, signatures
from engine.channels import NAME, Channel, Channels
from engine.contents import check_file, check_listed
from engine.errors import CheckpointError, RegistryError
from engine.folders import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Heed, Manifest
from engine.stores import Found, Store, open_store

MODELS = "models"
DIGEST = re.compile("[0-9a-f]{64}")
SHORTEST = 8  # of a digest's letters that name it
TRIES = 3


@dataclass(frozen=True)
class Address:
    """Where a worker's model comes from. key: the publisher's public key, None: none is asked for.
    ref: a channel, or the start of a digest."""

    url: str
    ref: str
    key: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Address | None:
        """None where it is a folder. Raises RegistryError."""
        if "#" not in text and not text.startswith("s3:"):
            return None
        parts = urlsplit(text)
        asked = parse_qs(parts.query)
        if not parts.fragment or set(asked) - {"key"}:
            raise RegistryError(f"{text} must be as in s3://bucket/models?key=publisher.pem#stable")
        key = asked.get("key")
        url = parts._replace(query="", fragment="").geturl()
        return cls(url, parts.fragment, Path(key[0]) if key else None)

    def open(self) -> Registry:
        """Raises RegistryError."""
        return Registry(open_store(self.url), self.key)


@dataclass(frozen=True)
class Listed:
    """A published model: bytes of its files, and when it was published, seconds of the epoch."""

    digest: str
    size: int
    written_s: float


class Registry:
    """Models in a store. key: of whom every model must be signed, see `engine.signatures`.

    Every method raises RegistryError when the store cannot be used, and CheckpointError when a
    model is not what it should be.
    """

    def __init__(self, store: Store, key: Path | None = None) -> None:
        self.store = store
        self.key = key
        self.channels = Channels(store)

    def push(
        self, folder: Path, key: Path | None = None, evaluation: Mapping[str, Any] | None = None
    ) -> str:
        """Publish a model folder; its digest. What is there already, byte by byte, stays; what is
        missing or damaged of an earlier try is written.

        Args:
            key: PEM of the private key to sign with; None does not sign.
            evaluation: added to that of the folder's manifest, which changes the digest.
        """
        with folders.held(folder) as (own, view):
            manifest = replace(own, evaluation={**own.evaluation, **(evaluation or {})})
            check_listed(manifest)
            manifest.resolve()
            for name in sorted(manifest.files):
                check_file(name, view / name)
            digest = manifest.digest()
            if (base := base_of(manifest)) is not None:
                self.manifest(base)
            at = f"{MODELS}/{digest}"
            there = self.store.names(f"{at}/")
            for name, wanted in sorted(manifest.files.items()):
                known = there.get(f"{at}/{name}")
                if known is None or not self._is_whole(f"{at}/{name}", known, view / name, wanted):
                    self.store.write(f"{at}/{name}", view / name)
            content = manifest.to_bytes()
            told = {SIGNATURE: signatures.sign(content, key)} if key else {}
            for name, data in (told | {MANIFEST: content}).items():
                (view / name).write_bytes(data)
                self.store.write(f"{at}/{name}", view / name)
        return digest

    def manifest(self, digest: str) -> Manifest:
        """A published model's manifest, and its signature checked where one is asked for."""
        at = f"{MODELS}/{digest}"
        found = self.store.read(f"{at}/{MANIFEST}", MAX_MANIFEST_BYTES)
        if found is None:
            raise RegistryError(f"{self.store.url} holds no model {digest[:12]}")
        manifest = Manifest.from_bytes(found[0])
        if manifest.to_bytes() != found[0] or manifest.digest() != digest:
            raise CheckpointError(f"{digest[:12]}: its {MANIFEST} is another one")
        if self.key is not None:
            signature = self.store.read(f"{at}/{SIGNATURE}", signatures.MAX_SIGNATURE_BYTES)
            signatures.check(found[0], None if signature is None else signature[0], self.key)
        check_listed(manifest)
        manifest.resolve()
        return manifest

    def pull(self, digest: str, cache: Path, heed: Heed = lambda: None) -> Path:
        """A published model as a folder below `cache`, hashed on the way; there already, it is
        verified again. A folder appears whole or not at all.

        heed: what it raises gives the pull up, and nothing of it stays.
        """
        manifest, target = self.manifest(digest), Path(cache) / digest
        self._check_names(digest, manifest)
        if target.exists():
            try:
                _verify(target, digest, heed)
                return target
            except CheckpointError:
                shutil.rmtree(target)
        with folders.drafting(target) as draft:
            for name, wanted in sorted(manifest.files.items()):
                self._fetch(f"{MODELS}/{digest}/{name}", draft / name, wanted, heed)
                check_file(name, draft / name)
            (draft / MANIFEST).write_bytes(manifest.to_bytes())
            draft.chmod(0o755)
            try:
                os.replace(draft, target)
            except OSError:  # somebody else was quicker
                _verify(target, digest, heed)
        return target

    def models(self) -> dict[str, Listed]:
        """All published models, the latest first."""
        names = self.store.names(f"{MODELS}/")
        whole = {n.split("/")[1] for n in names if n.endswith(f"/{MANIFEST}")}
        listed = [_listed(digest, names) for digest in whole if DIGEST.fullmatch(digest)]
        listed.sort(key=lambda one: (-one.written_s, one.digest))
        return {one.digest: one for one in listed}

    def find(self, ref: str) -> str:
        """The digest that a channel's name, a digest or its start stand for."""
        if DIGEST.fullmatch(ref):
            return ref
        if re.fullmatch(f"[0-9a-f]{{{SHORTEST},}}", ref):
            found = [digest for digest in self.models() if digest.startswith(ref)]
            if len(found) == 1:
                return found[0]
            raise RegistryError(f"{len(found)} models of {self.store.url} begin with {ref}")
        return self._channel(ref).digest

    def led(self, ref: str) -> list[str]:
        """What `find` says, and of a channel what it led to before, the latest first."""
        if not is_channel(ref):
            return [self.find(ref)]
        channel = self._channel(ref)
        past = (line.digest for line in reversed(channel.lines))
        return [*dict.fromkeys(filter(None, (channel.digest, *past)))]

    def _channel(self, ref: str) -> Channel:
        channel = self.channels.read(ref)
        if not channel.digest:
            raise RegistryError(f"the channel {ref} of {self.store.url} leads to no model")
        return channel

    def remove(self, digest: str) -> None:
        """Its manifest first, so that nobody takes half a model for a whole one."""
        at = f"{MODELS}/{digest}"
        self.store.delete(f"{at}/{MANIFEST}")
        for name in self.store.names(f"{at}/"):
            self.store.delete(name)

    def _is_whole(self, name: str, known: Found, path: Path, wanted: str) -> bool:
        """Whether a file of an earlier push is the one that is to be there: read again, as no store
        tells a digest of what it holds now."""
        if known.size != path.stat().st_size:
            return False
        hashed = hashlib.sha256()
        try:
            for chunk in self.store.stream(name):
                hashed.update(chunk)
        except RegistryError:
            return False
        return hashed.hexdigest() == wanted

    def _check_names(self, digest: str, manifest: Manifest) -> None:
        at = f"{MODELS}/{digest}/"
        there = {name.removeprefix(at) for name in self.store.names(at)}
        strange = there - set(manifest.files) - {MANIFEST, SIGNATURE}
        if strange:
            raise CheckpointError(f"{digest[:12]}: not in the manifest: {min(strange)}")

    def _fetch(self, name: str, path: Path, wanted: str, heed: Heed) -> None:
        """One file, hashed as it comes; tried again where the connection broke."""
        for left in reversed(range(TRIES)):
            hashed = hashlib.sha256()
            try:
                with path.open("wb") as file:
                    for chunk in self.store.stream(name):
                        heed()
                        hashed.update(chunk)
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                break
            except RegistryError:
                if not left:
                    raise
        if hashed.hexdigest() != wanted:
            raise CheckpointError(f"{name} is not the file that the manifest lists")


def is_channel(ref: str) -> bool:
    """Whether it may be led elsewhere; a digest, or its start, may not."""
    digest = len(ref) >= SHORTEST and set(ref) <= set("0123456789abcdef")
    return NAME.fullmatch(ref) is not None and not digest


def base_of(manifest: Manifest) -> str | None:
    """The digest of the model that an adapter changes; None where the model is whole.

    Raises CheckpointError: it is none.
    """
    base = manifest.lineage.get("base")
    if base is not None and not (isinstance(base, str) and DIGEST.fullmatch(base)):
        raise CheckpointError(f"{MANIFEST}: lineage.base must be a digest")
    return base


def _verify(folder: Path, digest: str, heed: Heed) -> None:
    """Raises CheckpointError unless it is this very model, whole: its manifest is the one whose
    signature was looked at, not just one that fits the files beside it."""
    with suppress(OSError):  # of another user: then it is not ours to keep, either
        os.utime(folder)  # nobody shall take it for unused meanwhile
    found = folders.verify(folder, heed).digest()
    if found != digest:
        raise CheckpointError(f"{folder} holds another model, {found[:12]}")


def _listed(digest: str, names: Mapping[str, Found]) -> Listed:
    own = [told for name, told in names.items() if name.startswith(f"{MODELS}/{digest}/")]
    manifest = names[f"{MODELS}/{digest}/{MANIFEST}"]
    return Listed(digest, sum(told.size for told in own), manifest.written_s)
