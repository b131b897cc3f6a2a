"""The Merkle tree: the vectors of RFC 6962's reference implementation, and agreement
with another implementation.
"""

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.store.merkle import (
    Edge,
    MerkleTree,
    is_consistent,
    is_included,
    leaf_hash,
)

LEAVES = (
    *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
    "606162636465666768696a6b6c6d6e6f",
)
ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
"""The leaves and roots of the test suite of certificate-transparency
(https://github.com/transparency-dev/merkle, testonly/constants.go).
"""
SIZES = st.integers(0, 70)
PROOFS = st.lists(
    st.integers(0, 9).map(lambda number: sha256(bytes([number])).digest()), max_size=9
)


def tree_of(entries):
    tree = MerkleTree()
    for entry in entries:
        tree.add(leaf_hash(entry))
    return tree


def number_entries(count):
    return [str(number).encode() for number in range(count)]


TREE = tree_of(number_entries(70))


def test_tree_and_edge_have_known_roots():
    tree = tree_of(map(bytes.fromhex, LEAVES))
    edge = Edge()
    for size, root in enumerate(ROOTS):
        assert (tree.root(size).hex(), edge.root.hex()) == (root, root)
        assert (edge.size, len(edge.hashes)) == (size, size.bit_count())
        if size < len(LEAVES):
            edge = edge.add(leaf_hash(bytes.fromhex(LEAVES[size])))


def test_proofs_equal_those_of_another_implementation(tlog):
    other = tlog.MerkleTree(number_entries(40))
    for size in range(1, 41):
        assert TREE.root(size) == other.root(size)
        for place in range(size):
            assert TREE.inclusion_proof(place, size) == other.inclusion_proof(place, size)
        for old in range(size + 1):
            assert TREE.consistency_proof(old, size) == other.consistency_proof(old, size)


@pytest.mark.parametrize("size", [2, 7, 8, 21])
def test_changed_inclusion_proof_fails(size):
    root = TREE.root(size)
    for place in range(size):
        leaf = TREE.subtree(0, place)
        proof = TREE.inclusion_proof(place, size)
        assert is_included(leaf, place, size, proof, root)
        wrong = [
            (TREE.subtree(0, place + 1), place, size, proof, root),
            (leaf, place - size, size, proof, root),
            (leaf, place + size, size, proof, root),
            (leaf, place, size, [*proof, root], root),
            (leaf, place, size, proof[:-1], root),
            (leaf, place, size, proof, TREE.root(size + 1)),
        ]
        wrong += [(leaf, other, size, proof, root) for other in range(size) if other != place]
        assert [is_included(*arguments) for arguments in wrong] == [False] * len(wrong)


@given(old=SIZES, size=SIZES, wrong=SIZES, hashes=PROOFS)
def test_consistency_is_that_of_another_implementation(tlog, old, size, wrong, hashes):
    other = tlog.verify_consistency
    proof = TREE.consistency_proof(min(old, size), max(old, size))
    for older, newer, path in (
        (old, size, proof),
        (size, old, proof),
        (old, wrong, proof),
        (old, size, proof[:-1]),
        (old, size, [*proof, *hashes]),
    ):
        for old_root in (TREE.root(older), TREE.root(wrong)):
            for root in (TREE.root(newer), TREE.root(wrong)):
                answer = is_consistent(older, old_root, newer, root, path)
                assert answer is other(older, newer, old_root, root, path)
    if old <= size:
        assert is_consistent(old, TREE.root(old), size, TREE.root(size), proof)


@given(place=SIZES, size=SIZES, hashes=PROOFS)
def test_inclusion_is_that_of_another_implementation(tlog, place, size, hashes):
    other = tlog.verify_inclusion
    leaf = TREE.subtree(0, place)
    proofs = [hashes]
    if place < size:
        proofs.append(TREE.inclusion_proof(place, size))
        proofs.append([*proofs[-1][:-1], *hashes])
    for proof in proofs:
        arguments = (leaf, place, size, proof, TREE.root(size))
        assert is_included(*arguments) is other(*arguments)
