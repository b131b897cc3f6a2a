"""The two types of keys that sign the audit trail: Ed25519 and, where a FIPS provider
of OpenSSL lacks it, ECDSA P-256 with SHA-256.
"""

from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    PublicKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey


def new_key() -> "PrivateKey":
    from cryptography.exceptions import InternalError, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        return ed25519.Ed25519PrivateKey.generate()
    except (InternalError, UnsupportedAlgorithm):
        return ec.generate_private_key(ec.SECP256R1())


def is_private(key: object) -> "TypeGuard[PrivateKey]":
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    return isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey)


def is_public(key: object) -> "TypeGuard[PublicKey]":
    """Return True for a public key of one of the two types."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, ec.SECP256R1)
    return isinstance(key, ed25519.Ed25519PublicKey)


def is_ecdsa(key: "PublicKey") -> bool:
    from cryptography.hazmat.primitives.asymmetric import ec

    return isinstance(key, ec.EllipticCurvePublicKey)


def public_key(content: bytes, is_ecdsa: bool) -> "PublicKey":
    """Return the key of `public_bytes`. Raises ValueError for other bytes."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if not is_ecdsa:
        return ed25519.Ed25519PublicKey.from_public_bytes(content)
    try:
        key = serialization.load_der_public_key(content)
    except UnsupportedAlgorithm:
        raise ValueError(content) from None
    if not is_public(key):
        raise ValueError(content)
    return key


def public_bytes(key: "PublicKey") -> bytes:
    """Return the raw bytes of an Ed25519 key, and the DER of a P-256 key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if isinstance(key, ed25519.Ed25519PublicKey):
        return key.public_bytes_raw()
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def sign(key: "PrivateKey", content: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(content, ec.ECDSA(hashes.SHA256()))
    return key.sign(content)


def verify(key: "PublicKey", signature: bytes, content: bytes) -> None:
    """Raise InvalidSignature unless the key has made the signature."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    else:
        key.verify(signature, content)
