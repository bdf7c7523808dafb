"""A signature is the key's, of these very bytes, and a tool of others agrees."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine import signatures
from engine.errors import RegistryError, SigningError

MANIFEST = b'{"format": 1}\n'


def key_pair(folder: Path, name: str = "publisher") -> tuple[Path, Path]:
    """Paths of a private key and of its public half."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_what_was_signed_passes_and_nothing_else(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    _, other = key_pair(tmp_path, "other")
    signature = signatures.sign(MANIFEST, private)
    signatures.check(MANIFEST, signature, public)
    for manifest, given, key in (
        (MANIFEST + b" ", signature, public),
        (MANIFEST, signature, other),
        (MANIFEST, signature[:-20], public),
        (MANIFEST, b"", public),
        (MANIFEST, signatures.sign(b"another", private), public),
    ):
        with pytest.raises(RegistryError, match="signature is not of"):
            signatures.check(manifest, given, key)
    with pytest.raises(RegistryError, match="is not signed"):
        signatures.check(MANIFEST, None, public)


def test_the_tool_of_the_format_agrees(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(MANIFEST)
    (tmp_path / "sig").write_bytes(signatures.sign(MANIFEST, private))
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
    command += ["--signature", str(tmp_path / "sig"), "--public_key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "manifest.json").write_bytes(MANIFEST + b" ")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_a_key_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.key").write_text("nothing")
    with pytest.raises(SigningError, match="no.key cannot sign"):
        signatures.sign(MANIFEST, tmp_path / "no.key")
    with pytest.raises(RegistryError, match="no.key"):
        signatures.check(MANIFEST, b"{}", tmp_path / "no.key")


def test_without_the_package_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for part in ("signing", "verifying", "hashing"):
        monkeypatch.setitem(sys.modules, f"model_signing.{part}", None)
    with pytest.raises(SigningError, match="need model-signing"):
        signatures.sign(MANIFEST, tmp_path / "key")
    with pytest.raises(RegistryError, match="need model-signing"):
        signatures.check(MANIFEST, b"", tmp_path / "key")
