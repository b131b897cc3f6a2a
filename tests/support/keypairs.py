"""Private keys with their public keys, and authorities with certificates, as PEM
files.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    generate_private_key,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class KeyFiles:
    key: Path
    public: Path


def write_key(folder, name="release"):
    """Write the private key NAME.key and its public key NAME.pub."""
    key = generate_private_key(SECP256R1())
    files = KeyFiles(folder / f"{name}.key", folder / f"{name}.pub")
    write_private_key(files.key, key)
    public = key.public_key()
    files.public.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return files


def write_private_key(file, key):
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@dataclass
class Authority:
    """Signs certificates; `folder` contains each certificate and its key as NAME.pem
    and NAME.key.
    """

    folder: Path
    name: str

    def __post_init__(self):
        self.folder.mkdir()
        self._key = generate_private_key(SECP256R1())
        self.certificate = ""
        self.certificate = self._write(
            "ca", self._key, self._built(self.name, self._key, is_authority=True)
        )

    def issue(self, name, valid=_DAY):
        """Return the files of a certificate for `name` and 127.0.0.1, with its
        authority's, and of its key. `valid` is the time from now to its end.
        """
        key = generate_private_key(SECP256R1())
        certificate = self._write(
            name, key, self._built(name, key, is_authority=False, valid=valid)
        )
        return certificate, str(self.folder / f"{name}.key")

    def _built(self, name, key, is_authority, valid=_DAY):
        def named(common):
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

        now = datetime.now(UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        builder = x509.CertificateBuilder(
            named(self.name), named(name), key.public_key(), x509.random_serial_number()
        )
        builder = builder.not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + valid)
        builder = builder.add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        # Python 3.13 requires these extensions of RFC 5280.
        signs = (True, *[False] * 8)
        certifies = (*[False] * 5, True, True, False, False)
        usage = x509.KeyUsage(*(certifies if is_authority else signs))
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(_identifier(key), critical=False)
        signer = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            _identifier(self._key)
        )
        return builder.add_extension(signer, critical=False).sign(self._key, hashes.SHA256())

    def _write(self, name, key, certificate):
        file = self.folder / f"{name}.pem"
        chain = Path(self.certificate).read_bytes() if self.certificate else b""
        file.write_bytes(certificate.public_bytes(Encoding.PEM) + chain)
        write_private_key(file.with_suffix(".key"), key)
        return str(file)


def _identifier(key):
    """Return the identifier of RFC 7093 §2, which does not use SHA-1."""
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return x509.SubjectKeyIdentifier(sha256(public).digest()[:20])
