"""Checkpoints of a Merkle tree: signed notes with the size and the root of the tree, to
which witnesses add cosignatures.

The formats are those of C2SP (https://c2sp.org): signed-note, tlog-checkpoint and, for
Ed25519, tlog-cosignature.
"""

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.store import key_types
from mlflow_deploy_plugin.core.store.merkle import HASH_BYTES, Edge

if TYPE_CHECKING:
    from mlflow_deploy_plugin.core.store.key_types import PublicKey

_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]{1,255}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
_NUMBER = re.compile(r"0|[1-9]\d{0,17}", re.ASCII)
_KEY_ID_BYTES = 4
_TIME_BYTES = 8


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log.

    Attributes:
        origin: the name of the log and of its key.
        size: the number of leaves.
        root: the root of the tree.
        extensions: further signed lines, which the logs of onnxserve do not have.
        signatures: the name of a key and a signature in Base64, one line each.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    signatures: tuple[str, ...] = ()

    @property
    def body(self) -> str:
        """The signed text."""
        lines = (self.origin, self.size, encoded(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @property
    def text(self) -> str:
        return f"{self.body}\n" + "".join(f"— {line}\n" for line in self.signatures)

    def with_signatures(self, *lines: str) -> "Checkpoint":
        """Return the checkpoint with these lines in the places of those of the same
        keys.
        """
        keys = {_split_signature(line)[:2] for line in lines}
        kept = [line for line in self.signatures if _split_signature(line)[:2] not in keys]
        return replace(self, signatures=(*kept, *lines))


@dataclass(frozen=True)
class TreeHead:
    """The newest checkpoint of a log with the right edge of its tree."""

    checkpoint: Checkpoint
    edge: Edge

    @property
    def log(self) -> str:
        """The name of the log of a store, without the id of the key."""
        return self.checkpoint.origin.rpartition("/")[0]

    @property
    def hashes(self) -> str:
        """The hashes of the edge as text."""
        return " ".join(map(encoded, self.edge.hashes))


def parse_head(note: str, hashes: str) -> TreeHead:
    """Return the head of a checkpoint's text and `TreeHead.hashes`. Raises ValueError
    if they contradict each other. No signature is checked.
    """
    checkpoint = parse_checkpoint(note)
    edge = Edge(checkpoint.size, tuple(map(decoded, hashes.split())))
    if len(edge.hashes) != edge.size.bit_count() or edge.root != checkpoint.root:
        raise ValueError(note)
    return TreeHead(checkpoint, edge)


def _split_signature(line: str) -> tuple[str, bytes, bytes]:
    """Return the name and the id of the key, and the signature."""
    name, _, signature = line.partition(" ")
    content = decoded(signature)
    return name, content[:_KEY_ID_BYTES], content[_KEY_ID_BYTES:]


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def decoded(text: str) -> bytes:
    """Return the bytes of canonical Base64. Raises ValueError for another text."""
    content = base64.b64decode(text, validate=True)
    if encoded(content) != text:
        raise ValueError(text)
    return content


def parse_size(text: str) -> int:
    """Return the size of a tree. Raises ValueError for another text."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(text)
    return int(text)


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint in a note, whose signatures are not checked. Raises
    ValueError for another text.
    """
    body, empty, signed = text.rpartition("\n\n")
    origin, size, root, *extensions = body.split("\n")
    lines = signed.removesuffix("\n").split("\n")
    checkpoint = Checkpoint(
        origin,
        parse_size(size),
        decoded(root),
        tuple(extensions),
        tuple(parse_signature(line) for line in lines),
    )
    is_valid = _NAME.fullmatch(origin) and len(checkpoint.root) == HASH_BYTES and all(extensions)
    if not is_valid or checkpoint.text != text or not empty or _CONTROL.search(text):
        raise ValueError(text)
    return checkpoint


def parse_signature(line: str) -> str:
    """Return the name and the signature of a signature line. Raises ValueError for
    another text.
    """
    dash, name, signature = line.split(" ")
    if dash != "—" or not _NAME.fullmatch(name) or len(decoded(signature)) <= _KEY_ID_BYTES:
        raise ValueError(line)
    return f"{name} {signature}"


@dataclass(frozen=True)
class NoteSigner:
    """A public key under a name, which signs checkpoints as a log or as a witness
    (https://c2sp.org/signed-note, "Verifier keys").

    Attributes:
        kind: LOG, ECDSA_LOG or WITNESS, the byte of its signatures' type.
    """

    LOG: ClassVar[int] = 1
    ECDSA_LOG: ClassVar[int] = 2
    WITNESS: ClassVar[int] = 4

    name: str
    key: "PublicKey"
    kind: int

    @property
    def key_id(self) -> bytes:
        content = f"{self.name}\n".encode() + self._typed_key
        if self.kind == self.ECDSA_LOG:
            content = key_types.public_bytes(self.key)
        return hashlib.sha256(content).digest()[:_KEY_ID_BYTES]

    @property
    def _typed_key(self) -> bytes:
        return bytes([self.kind]) + key_types.public_bytes(self.key)

    @property
    def text(self) -> str:
        """The key as text: the name, the key's id in hex and the key in Base64."""
        return f"{self.name}+{self.key_id.hex()}+{encoded(self._typed_key)}"

    def sign(self, body: str, sign: Callable[[bytes], bytes], now: datetime | None = None) -> str:
        """Return the line of a signature that the private key makes with `sign`; with
        `now` the cosignature of a witness.
        """
        time = b"" if now is None else int(now.timestamp()).to_bytes(_TIME_BYTES, "big")
        signature = self.key_id + time + sign(_message(body, time))
        return f"{self.name} {encoded(signature)}"

    def signed_at(self, checkpoint: Checkpoint) -> datetime | None:
        """Return the time at which this witness has signed the checkpoint, or the
        beginning of 1970 for a log. None if there is no valid signature, or if there
        are several.
        """
        from cryptography.exceptions import InvalidSignature

        signatures = map(_split_signature, checkpoint.signatures)
        key = (self.name, self.key_id)
        of_key = [content for name, key_id, content in signatures if (name, key_id) == key]
        if len(of_key) != 1:
            return None
        length = _TIME_BYTES if self.kind == self.WITNESS else 0
        time = of_key[0][:length]
        try:
            key_types.verify(self.key, of_key[0][length:], _message(checkpoint.body, time))
            return datetime.fromtimestamp(int.from_bytes(time, "big"), UTC)
        except (InvalidSignature, ValueError, OverflowError, OSError):
            return None


def log_signer(origin: str, key: "PublicKey") -> NoteSigner:
    """Return the signer of a log with this origin."""
    return NoteSigner(
        origin, key, NoteSigner.ECDSA_LOG if key_types.is_ecdsa(key) else NoteSigner.LOG
    )


def _message(body: str, time: bytes) -> bytes:
    if not time:
        return body.encode()
    return f"cosignature/v1\ntime {int.from_bytes(time, 'big')}\n{body}".encode()


def parse_signer(text: str, origin: str) -> NoteSigner:
    """Return the public key in a text such as `witness.example+d34caeba+BAE5…`.
    `origin` names the text in messages.

    Raises InvalidConfig for another text.
    """
    try:
        name, key_id, key = text.strip().split("+", 2)
        kind, *raw = decoded(key)
        public = key_types.public_key(bytes(raw), kind == NoteSigner.ECDSA_LOG)
        signer = NoteSigner(name, public, kind)
        kinds = (NoteSigner.LOG, NoteSigner.ECDSA_LOG, NoteSigner.WITNESS)
        is_valid = _NAME.fullmatch(name) and kind in kinds
        if not is_valid or signer.key_id.hex() != key_id:
            raise ValueError(text)
    except ValueError:
        raise InvalidConfig(
            f"{origin}: NAME+ID+KEY is expected, as its owner publishes it"
        ) from None
    return signer
