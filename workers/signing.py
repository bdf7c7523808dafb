"""The key and the certificates that videos are signed with: a folder with two PEM files.

    chain.pem   the signer's certificate first, then its issuers' (C2PA 2.2, section 14.5)
    key.pem     its private key, ECDSA on P-256, PKCS 8, for the owner's eyes

Where an operator gives none, a chain is made once, by nobody whom others trust.
"""

import datetime
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from engine.errors import SigningError

CHAIN, KEY = "chain.pem", "key.pem"
SELF_MADE = "Troupe, self-made"
# Without a time stamp from others a signature counts no longer than its certificate.
VALID_DAYS = 20 * 365


@dataclass(frozen=True)
class Signing:
    """PEM texts. self_made: the chain ends in a root that stands in nobody's trust list."""

    chain: str
    key: str
    self_made: bool


def load(folder: Path) -> Signing:
    """The chain and the key of a folder, found fit to sign with.

    Raises:
        SigningError: a file is missing, open to others or of another kind; the message says which.
    """
    key_path = folder / KEY
    try:
        mode = stat.S_IMODE(key_path.stat().st_mode)
        chain, key = (folder / CHAIN).read_text(), key_path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SigningError(f"cannot sign: {folder} needs {CHAIN} and {KEY}: {error}") from error
    # A group may read: that is how clusters mount secrets.
    if mode & 0o027:
        raise SigningError(f"cannot sign: others may use {key_path}: chmod 600 {key_path}")
    return Signing(chain, key, _checked(folder, chain, key))


def make(folder: Path) -> Path:
    """A root, a certificate under it and its key, unless the folder is there; returns the folder.

    Raises:
        SigningError: the disk refused.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".signing-", dir=folder.parent))
        chain, key = _self_made()
        (draft / CHAIN).write_text(chain)
        (draft / KEY).touch(0o600)
        (draft / KEY).write_text(key)
        try:
            draft.rename(folder)  # whole or not at all
        except OSError:
            shutil.rmtree(draft)
            if not folder.exists():  # else another process was faster
                raise
    except OSError as error:
        raise SigningError(f"cannot sign: {folder} cannot be made: {error}") from error
    return folder


def _checked(folder: Path, chain: str, key: str) -> bool:
    """Whether the chain is self-made. Raises SigningError where key and chain do not fit."""
    try:
        certificates = x509.load_pem_x509_certificates(chain.encode())
        private = serialization.load_pem_private_key(key.encode(), password=None)
        for below, above in zip(certificates, certificates[1:], strict=False):
            below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature) as error:
        why = error if str(error) else "a certificate is not signed by the next one"
        raise SigningError(f"cannot sign: {folder}: {why}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or private.curve.name != "secp256r1":
        raise SigningError(f"cannot sign: {folder / KEY} must be an ECDSA key on P-256 (ES256)")
    if certificates[0].public_key() != private.public_key():
        raise SigningError(f"cannot sign: {folder / KEY} is not of the first one in {CHAIN}")
    if certificates[0].not_valid_after_utc < datetime.datetime.now(datetime.UTC):
        raise SigningError(f"cannot sign: the certificate in {folder / CHAIN} has expired")
    return certificates[-1].subject == _name("root")


def _self_made() -> tuple[str, str]:
    """Chain and key, PEM."""
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("root", root_key.public_key(), root_key, is_root=True)
    signer = _certificate("signer", key.public_key(), root_key, is_root=False)
    chain = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (signer, root))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return chain.decode(), private.decode()


def _name(role: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, SELF_MADE),
            x509.NameAttribute(NameOID.COMMON_NAME, role),
        ]
    )


def _certificate(
    role: str, public: ec.EllipticCurvePublicKey, issuer: ec.EllipticCurvePrivateKey, is_root: bool
) -> x509.Certificate:
    """In C2PA's profile: X.509 v3, key usage, extended key usage, key identifiers."""
    now = datetime.datetime.now(datetime.UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    signs = {"digital_signature": not is_root, "key_cert_sign": is_root, "crl_sign": is_root}
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(role))
        .issuer_name(_name("root"))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks differ
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(x509.KeyUsage(**usage, **signs), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
    )
    if not is_root:
        purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purpose, critical=False)
    return builder.sign(issuer, hashes.SHA256())
