"""Signatures of models: who has the publisher's key says that a manifest is his.

The manifest lists the digest of every file, so signing it signs the folder. The signature is a
bundle of OpenSSF Model Signing (key mode, offline) over a folder that holds the manifest alone;
`model_signing verify key` checks it without anything of ours. The package is optional
(`pip install 'troupe[registry]'`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.errors import RegistryError, SigningError, UnverifiedError
from engine.folders import MANIFEST

MAX_SIGNATURE_BYTES = 100_000


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of a manifest's bytes.

    Args:
        key: PEM of a private key on a NIST curve (`openssl ecparam -name prime256v1 -genkey`).

    Raises:
        SigningError: the key cannot be used, or the package is not installed.
    """
    try:
        signing = _package("signing")
        with _alone(manifest) as folder:
            bundle = folder.with_name("bundle")
            signing.Config().use_elliptic_key_signer(private_key=key).sign(folder, bundle)
            return bundle.read_bytes()
    except RegistryError as error:
        raise SigningError(str(error)) from error
    except Exception as error:  # of the package's many; a key that is none is told as any of them
        raise SigningError(f"{key} cannot sign a model: {error}") from error


def check(manifest: bytes, signature: bytes | None, key: Path) -> None:
    """Raises RegistryError unless the signature of these bytes was made with the private half.

    Args:
        key: PEM of the public key.
    """
    if signature is None:
        raise UnverifiedError(f"the model is not signed, and only those signed for {key} are taken")
    verifying, hashing = _package("verifying"), _package("hashing")
    whole = hashing.Config().use_file_serialization(hashing_algorithm="sha256")
    with _alone(manifest) as folder:
        bundle = folder.with_name("bundle")
        bundle.write_bytes(signature)
        try:
            verifier = verifying.Config().use_elliptic_key_verifier(public_key=key)
            verifier.set_hashing_config(whole).verify(folder, bundle)
        except Exception as error:  # whatever it is, the model is not vouched for
            why = f"the signature is not of {key}'s owner: {error!s:.200}"
            raise UnverifiedError(why) from error


def _package(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{part}")
    except ImportError as error:
        raise RegistryError(
            f"signatures need model-signing (pip install 'troupe[registry]'): {error}"
        ) from error


@contextmanager
def _alone(manifest: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="troupe-signed-") as place:
        folder = Path(place) / "model"
        folder.mkdir()
        (folder / MANIFEST).write_bytes(manifest)
        yield folder
