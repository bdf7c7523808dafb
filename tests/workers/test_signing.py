"""Keys and certificates: made once, closed to others, refused where they cannot sign."""

import multiprocessing
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine.errors import SigningError
from workers import signing
from workers.signing import CHAIN, KEY, load, make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "state" / "signing")
    return tmp_path / "state" / "signing"


def test_a_chain_is_made_once_and_its_key_is_closed(folder: Path) -> None:
    first = load(folder)
    assert first.self_made and (folder / KEY).stat().st_mode & 0o777 == 0o600
    make(folder)
    assert load(folder) == first
    assert [path.name for path in folder.parent.iterdir()] == ["signing"]


def test_the_certificates_are_in_the_profile(folder: Path) -> None:
    """C2PA 2.2, section 14.5.1."""
    signer, root = x509.load_pem_x509_certificates((folder / CHAIN).read_bytes())
    usage = signer.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert not signer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    purposes = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose.dotted_string for purpose in purposes] == ["1.3.6.1.5.5.7.3.4"]
    issuer = signer.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert issuer.key_identifier == own.digest
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    signer.verify_directly_issued_by(root)
    root.verify_directly_issued_by(root)


def _make(folder: Path, start: "multiprocessing.synchronize.Event") -> None:
    start.wait()
    make(folder)
    load(folder)


def test_workers_that_start_together_have_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    children = [
        context.Process(target=_make, args=(tmp_path / "signing", start)) for _ in range(6)
    ]
    for child in children:
        child.start()
    start.set()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["signing"]


@pytest.mark.parametrize("mode", [0o604, 0o602, 0o620, 0o644, 0o666])
def test_a_key_that_others_can_use_is_refused_with_the_remedy(folder: Path, mode: int) -> None:
    (folder / KEY).chmod(mode)
    with pytest.raises(SigningError, match=f"chmod 600 {folder / KEY}"):
        load(folder)
    (folder / KEY).chmod(0o440)  # as a cluster mounts it
    load(folder)


@pytest.mark.parametrize("name", [CHAIN, KEY])
def test_what_is_missing_or_garbled_is_named(folder: Path, name: str) -> None:
    (folder / name).write_text("no PEM")
    with pytest.raises(SigningError, match=str(folder)):
        load(folder)
    (folder / name).unlink()
    with pytest.raises(SigningError, match=f"needs {CHAIN} and {KEY}.*{name}"):
        load(folder)
    with pytest.raises(SigningError, match="nowhere"):
        load(folder / "nowhere")


def _put_key(folder: Path, key: ec.EllipticCurvePrivateKey) -> None:
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / KEY).write_bytes(key.private_bytes(serialization.Encoding.PEM, *form))


def test_a_key_of_another_certificate_or_curve_is_refused(folder: Path) -> None:
    _put_key(folder, ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(SigningError, match="not of the first"):
        load(folder)
    _put_key(folder, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(SigningError, match="P-256"):
        load(folder)


def test_a_chain_in_the_wrong_order_is_refused(folder: Path) -> None:
    blocks = (folder / CHAIN).read_text().split("-----BEGIN")[1:]
    (folder / CHAIN).write_text("".join(f"-----BEGIN{block}" for block in reversed(blocks)))
    with pytest.raises(SigningError, match="does not match"):
        load(folder)


def test_an_expired_certificate_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(signing, "VALID_DAYS", 0)
    make(tmp_path / "short")
    with pytest.raises(SigningError, match="expired"):
        load(tmp_path / "short")


def test_a_disk_that_refuses_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SigningError, match="cannot be made"):
        make(tmp_path / "file" / "signing")
