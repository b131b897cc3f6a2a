"""The Merkle tree of RFC 6962: leaves of SHA-256 in the order in which they are added,
and proofs that a leaf is in the tree, or that the tree contains an older one.

Sizes and places count leaves. Hashes have 32 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

HASH_BYTES = 32


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\0" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()


@dataclass(frozen=True)
class Edge:
    """The right edge of a tree, which is all that is needed to add leaves.

    Attributes:
        size: the number of leaves.
        hashes: the roots of the perfect subtrees from left to right, one per bit of
            `size` that is set.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    @property
    def root(self) -> bytes:
        """The root of the tree; SHA-256 of nothing for an empty one."""
        if not self.hashes:
            return sha256().digest()
        *others, root = self.hashes
        for left in reversed(others):
            root = _node(left, root)
        return root

    def add(self, leaf: bytes) -> "Edge":
        """Return the edge of the tree with one more leaf hash."""
        hashes = [*self.hashes]
        rest = self.size
        while rest & 1:
            leaf = _node(hashes.pop(), leaf)
            rest >>= 1
        return Edge(self.size + 1, (*hashes, leaf))


class MerkleTree:
    """All leaf hashes and the roots of all perfect subtrees, for proofs."""

    def __init__(self) -> None:
        self._levels = [bytearray()]

    @property
    def size(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    def add(self, leaf: bytes) -> None:
        for level in self._levels:
            level += leaf
            if len(level) // HASH_BYTES % 2:
                return
            leaf = _node(bytes(level[-2 * HASH_BYTES : -HASH_BYTES]), leaf)
        self._levels.append(bytearray(leaf))

    def subtree(self, level: int, place: int) -> bytes:
        """Return the root of the `place`-th perfect subtree with 2**level leaves. Level
        0 has the leaf hashes.
        """
        return bytes(self._levels[level][place * HASH_BYTES : (place + 1) * HASH_BYTES])

    def root(self, size: int) -> bytes:
        """Return the root of the first `size` leaves."""
        return self._root(0, size) if size else Edge().root

    def _root(self, start: int, end: int) -> bytes:
        count = end - start
        if count.bit_count() == 1:
            level = count.bit_length() - 1
            return self.subtree(level, start >> level)
        middle = start + _split(count)
        return _node(self._root(start, middle), self._root(middle, end))

    def inclusion_proof(self, place: int, size: int) -> list[bytes]:
        """Return the proof that the leaf is at this place of the first `size` leaves,
        of which it must be one.
        """
        start = 0
        end = size
        proof = []
        while end - start > 1:
            middle = start + _split(end - start)
            if place < middle:
                proof.append(self._root(middle, end))
                end = middle
            else:
                proof.append(self._root(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old: int, size: int) -> list[bytes]:
        """Return the proof that the first `size` leaves begin with the first `old`
        ones. It is empty for equal sizes and for an empty older tree.
        """
        if old in (0, size):
            return []
        start = 0
        end = size
        proof = []
        while old != end:
            middle = start + _split(end - start)
            if old <= middle:
                proof.append(self._root(middle, end))
                end = middle
            else:
                proof.append(self._root(start, middle))
                start = middle
        if start:  # Otherwise, the checker knows this subtree: it is the older tree.
            proof.append(self._root(start, end))
        return proof[::-1]


def _split(count: int) -> int:
    """Return the largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def is_included(leaf: bytes, place: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Return True if the leaf hash is at this place of the tree with this size and root
    (RFC 9162, section 2.1.3.2).
    """
    if not 0 <= place < size:
        return False
    number = place
    last = size - 1
    for sibling in proof:
        if last == 0:
            return False
        if number & 1 or number == last:
            leaf = _node(sibling, leaf)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            leaf = _node(leaf, sibling)
        number >>= 1
        last >>= 1
    return last == 0 and leaf == root


def is_consistent(
    old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]
) -> bool:
    """Return True if the tree with this size and root begins with the leaves of the
    older tree (RFC 9162, section 2.1.4.2).
    """
    if old == 0 and old_root != Edge().root:
        return False
    if old == size:
        return not proof and old_root == root
    if old == 0:
        return not proof and size > 0
    hashes = [*proof]
    if old.bit_count() == 1:
        hashes.insert(0, old_root)
    if not 0 < old < size or not hashes:
        return False
    number = old - 1
    last = size - 1
    while number & 1:
        number >>= 1
        last >>= 1
    older = newer = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            return False
        if number & 1 or number == last:
            older = _node(sibling, older)
            newer = _node(sibling, newer)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            newer = _node(newer, sibling)
        number >>= 1
        last >>= 1
    return last == 0 and (older, newer) == (old_root, root)
