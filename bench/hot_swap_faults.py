"""Ten ways in which a published model can be wrong, or publishing go wrong, for `bench.hot_swap`.

    truncated  flipped   in the store, after it was published as it should be
    unsigned             published without the key that workers ask for
    code                 an extra .py beside the model in the store
    config               a config.json that names a class, listed and signed
    pickle               a pickle under the name dit.safetensors, listed and signed
    nan                  weights that are no numbers, published as they should be
    swapped              a file on the worker's own disk is changed after it was fetched
    race                 eight publishers at once
    storm                the store answers with errors, half answers or not at all

`config` and `pickle` are refused when they are published; they are put there past the registry.
"""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from bench import tiny
from engine import signatures
from engine.errors import CheckpointError
from engine.folders import DIT, MANIFEST, SIGNATURE, read_manifest
from engine.registry import MODELS, Registry

EVIL_CONFIG = json.dumps({"auto_map": {"AutoModel": "evil.Model"}}).encode()


@dataclass
class Ground:
    """Where faults are planted. registry asks for signatures of `private`'s other half; cache: the
    folder of models on the workers' machine."""

    registry: Registry
    base: Path
    folder: Path
    private: Path
    cache: Path
    made: int = 0
    threads: list[threading.Thread] = field(default_factory=list)

    def variant(self, change: Callable[[dict[str, Tensor]], None] = lambda tensors: None) -> Path:
        """Another model folder."""
        self.made += 1
        return tiny.variant(self.base, self.folder / f"m{self.made}", self.made, change)

    def push(self, folder: Path, signed: bool = True) -> str:
        """Published; its digest."""
        return self.registry.push(folder, self.private if signed else None)

    def store(self, name: str, content: bytes) -> None:
        """An object, whatever was there."""
        path = self.folder / "object"
        path.write_bytes(content)
        self.registry.store.write(name, path)

    def close(self) -> None:
        """Wait for what still goes on."""
        for thread in self.threads:
            thread.join()


def truncated(ground: Ground) -> str:
    """See above, as all of these; the digest."""
    return _damaged(ground, lambda content: content[:-100])


def flipped(ground: Ground) -> str:
    """One bit, in the middle of the numbers."""
    at = 100_000
    return _damaged(ground, lambda c: c[:at] + bytes([c[at] ^ 1]) + c[at + 1 :])


def _damaged(ground: Ground, change: Callable[[bytes], bytes]) -> str:
    folder = ground.variant()
    digest = ground.push(folder)
    ground.store(f"{MODELS}/{digest}/{DIT}", change((folder / DIT).read_bytes()))
    return digest


def unsigned(ground: Ground) -> str:
    """Nobody vouches for it."""
    return ground.push(ground.variant(), signed=False)


def code(ground: Ground) -> str:
    """What somebody could be brought to import."""
    digest = ground.push(ground.variant())
    ground.store(f"{MODELS}/{digest}/evil.py", b"raise SystemExit('imported')\n")
    return digest


def config(ground: Ground) -> str:
    """What `from_pretrained` would follow."""
    return _forged(ground, "config.json", EVIL_CONFIG)


def pickled(ground: Ground) -> str:
    """What `torch.load` would run."""
    return _forged(ground, DIT, pickle.dumps({"w": [1.0]}))


def _forged(ground: Ground, name: str, content: bytes) -> str:
    """Refused by `push`, so put there object by object, with manifest and signature."""
    folder = ground.variant()
    (folder / name).write_bytes(content)
    manifest = read_manifest(folder)
    files = {**manifest.files, name: sha256(content).hexdigest()}
    manifest = replace(manifest, files=files)
    (folder / MANIFEST).write_bytes(manifest.to_bytes())
    try:
        ground.push(folder)
    except CheckpointError:
        digest = manifest.digest()
        for path in folder.iterdir():
            ground.store(f"{MODELS}/{digest}/{path.name}", path.read_bytes())
        signature = signatures.sign(manifest.to_bytes(), ground.private)
        ground.store(f"{MODELS}/{digest}/{SIGNATURE}", signature)
        return digest
    raise AssertionError(f"{name} was published")


def nan(ground: Ground) -> str:
    """One number of one tensor."""

    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["head.head.weight"].view(-1)[7] = torch.nan

    return ground.push(ground.variant(spoil))


def swap_later(ground: Ground, digest: str, delay_s: float, replaced: bool) -> None:
    """Other weights in the place of a fetched file, a moment after it has come."""
    other = (ground.variant() / DIT).read_bytes()
    target = ground.cache / digest / DIT

    def change() -> None:
        over = time.monotonic() + 30.0
        while not target.exists() and time.monotonic() < over:
            time.sleep(0.005)
        time.sleep(delay_s)
        if not target.exists():
            return  # found out and removed, or never fetched
        if replaced:
            path = target.with_name(".other")
            path.write_bytes(other)
            path.replace(target)
        else:
            target.write_bytes(other)

    thread = threading.Thread(target=change, name="evil", daemon=True)
    thread.start()
    ground.threads.append(thread)


def key_pair(folder: Path) -> tuple[Path, Path]:
    """PEMs of a private key and of its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "publisher.key", folder / "publisher.pem"
    plain = serialization.NoEncryption()
    pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(key.private_bytes(pem, kind, plain))
    of_all = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(pem, of_all))
    return private, public


PLANTED: dict[str, Callable[[Ground], str]] = {
    "truncated": truncated,
    "flipped": flipped,
    "unsigned": unsigned,
    "code": code,
    "config": config,
    "pickle": pickled,
    "nan": nan,
}
KINDS = (*PLANTED, "swapped", "race", "storm")
