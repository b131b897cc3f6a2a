"""Private keys, authorities and certificates for signatures, as PEM files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC)


@dataclass(frozen=True)
class KeyFiles:
    """A private key, and the file that verifiers trust: its public key, or the
    certificate of an authority.
    """

    key: Path
    public: Path


def write_key(folder: Path, name: str = "release") -> KeyFiles:
    """Write NAME.key and NAME.pub."""
    return _write(folder, name, ec.generate_private_key(ec.SECP256R1()))


def _write(folder: Path, name: str, key: ec.EllipticCurvePrivateKey) -> KeyFiles:
    files = KeyFiles(folder / f"{name}.key", folder / f"{name}.pub")
    files.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    files.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
    )
    return files


@dataclass(frozen=True)
class Authority:
    """A certificate authority, whose certificate is in `file`."""

    key: ec.EllipticCurvePrivateKey
    name: x509.Name
    file: Path

    def issue(self, folder: Path, name: str, valid: timedelta) -> tuple[Path, Path]:
        """Write NAME.key and its certificate NAME.crt, which has been valid for an hour
        and ends after `valid` from now. Return both files.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(True, *[False] * 8)  # Only digital signatures.
        certificate = (
            _unsigned(_common_name(name), self.name, key, valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        file = folder / f"{name}.crt"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return _write(folder, name, key).key, file


def write_authority(folder: Path, name: str = "authority") -> Authority:
    """Write the authority's certificate NAME.crt."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _common_name(name)
    certificate = (
        _unsigned(subject, subject, key, timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / f"{name}.crt"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return Authority(key, subject, file)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _unsigned(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    valid: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + valid)
    )
