"""The keys with which MLflow's servers sign audit events (`key_types.py`).

A key file is a PEM file. Its private key signs; its public keys are those of other
servers, and earlier keys of this server, whose events also count.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.statedir.files import read_or_make_secret
from mlflow_deploy_plugin.core.store import key_types
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, NoteSigner, log_signer
from mlflow_deploy_plugin.core.store.merkle import Edge

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.key_types import PrivateKey, PublicKey

_BLOCK = re.compile(r"-----BEGIN ([A-Z ]+)-----.+?-----END \1-----", re.DOTALL)


@dataclass(frozen=True)
class Keys:
    """Keys by their ids.

    Attributes:
        public: the public keys of servers, of which signatures count.
        private: the key that signs; None for a process that only checks signatures.
        key_id: the id of the private key; empty without one.
        file: the key file of a server, beside which it records the audit trail.
    """

    public: Mapping[str, "PublicKey"]
    private: "PrivateKey | None" = field(default=None, repr=False)
    key_id: str = ""
    file: Path | None = field(default=None, repr=False)

    def sign(self, text: str) -> str:
        """Return the signature of a dossier in Base64; empty without a private key."""
        if self.private is None:
            return ""
        return base64.b64encode(key_types.sign(self.private, _message(text))).decode()

    def is_signed(self, text: str, key_id: str, signature: str) -> bool:
        """Return True for a valid signature by one of the keys."""
        if key_id not in self.public:
            return False
        from cryptography.exceptions import InvalidSignature

        try:
            content = base64.b64decode(signature, validate=True)
            key_types.verify(self.public[key_id], content, _message(text))
        except (InvalidSignature, ValueError):
            return False
        return True

    def sign_checkpoint(self, log: str, edge: Edge) -> Checkpoint:
        """Return the signed checkpoint of a tree, whose origin is the name of the log
        with the id of the private key.
        """
        assert self.private is not None
        checkpoint = Checkpoint(f"{log}/{self.key_id}", edge.size, edge.root)
        signer = log_signer(checkpoint.origin, self.public[self.key_id])
        sign = partial(key_types.sign, self.private)
        return checkpoint.with_signatures(signer.sign(checkpoint.body, sign))

    def signer_of(self, checkpoint: Checkpoint) -> NoteSigner | None:
        """Return the key whose id the origin names, if it is one of these keys and has
        signed the checkpoint.
        """
        key = self.public.get(checkpoint.origin.rpartition("/")[2])
        signer = key and log_signer(checkpoint.origin, key)
        return signer if signer and signer.signed_at(checkpoint) else None

    def public_pem(self) -> str:
        """Return the public keys as PEM."""
        from cryptography.hazmat.primitives import serialization

        return "".join(
            key.public_bytes(
                serialization.Encoding.PEM,
                serialization.PublicFormat.SubjectPublicKeyInfo,
            ).decode()
            for key in self.public.values()
        )


def parse_keys(pem: str, origin: str) -> Keys:
    """Return the keys of a PEM text. `origin` names it in messages.

    Raises InvalidConfig if there is no key, another kind of key, or a second private
    key, and NotInstalled without the package cryptography.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise NotInstalled(
            "the signatures of audit events need cryptography: pip install cryptography"
        ) from None
    expected = (
        f"{origin}: one private key and any public keys of Ed25519 or P-256 are expected in PEM"
    )
    public: dict[str, PublicKey] = {}
    private = {}
    for block in _BLOCK.finditer(pem):
        content = block[0].encode()
        try:
            if "PRIVATE" in block[1]:
                key: object = serialization.load_pem_private_key(content, password=None)
            else:
                key = serialization.load_pem_public_key(content)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InvalidConfig(expected) from None
        if key_types.is_private(key):
            private[_key_id(key.public_key())] = key
            key = key.public_key()
        if not key_types.is_public(key):
            raise InvalidConfig(expected)
        public[_key_id(key)] = key
    if not public or len(private) > 1:
        raise InvalidConfig(expected)
    key_id, signing = next(iter(private.items()), ("", None))
    return Keys(public, signing, key_id)


def _key_id(key: "PublicKey") -> str:
    return hashlib.sha256(key_types.public_bytes(key)).hexdigest()[:16]


def read_key_file(path: Path) -> Keys:
    """Return the keys of a server, whose file is created with a new key if it does not
    exist.

    Raises InvalidConfig if the file cannot be used or has no private key, and
    NotInstalled.
    """
    from cryptography.hazmat.primitives import serialization

    new_key = key_types.new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        pem = read_or_make_secret(path, new_key).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"the key file of the audit trail cannot be used: {error}") from None
    keys = parse_keys(pem, str(path))
    if keys.private is None:
        raise InvalidConfig(f"{path}: the private key with which this server signs is missing")
    return replace(keys, file=path)


def _message(text: str) -> bytes:
    """Return the signed bytes. The first line keeps a signature from being used for
    another kind of text.
    """
    return f"onnxserve audit dossier\n{text}".encode()
