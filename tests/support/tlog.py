"""Another implementation of C2SP's logs and witnesses (the packages aics-tlog and
aics-witness), and a log that this process signs.

`make install` puts the packages into a folder of their own, because they declare a
newer Python.
"""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mlflow_deploy_plugin.core.store import key_types
from mlflow_deploy_plugin.core.store.checkpoints import Checkpoint, encoded, log_signer
from mlflow_deploy_plugin.core.store.merkle import MerkleTree, leaf_hash

FOLDER = Path(sys.prefix) / "tlog"
NEEDS_TLOG = pytest.mark.skipif(
    not (FOLDER / "aics_witness").is_dir(), reason=f"no aics-witness in {FOLDER}: make install"
)


@dataclass
class Log:
    """A log whose entries are numbers in a text."""

    name: str = "onnxserve/store/key"
    key: "key_types.PrivateKey" = field(default_factory=Ed25519PrivateKey.generate)
    tree: MerkleTree = field(default_factory=MerkleTree)

    @property
    def signer(self):
        return log_signer(self.name, self.key.public_key())

    def grow(self, size, entry="entry"):
        """Add entries up to this size, and return the log."""
        for number in range(self.tree.size, size):
            self.tree.add(leaf_hash(f"{entry} {number}".encode()))
        return self

    def fork(self, size, entry="changed"):
        """Return a log of the same key with other entries."""
        return Log(self.name, self.key).grow(size, entry)

    def checkpoint(self, size=None, root=None, **more):
        size = self.tree.size if size is None else size
        checkpoint = Checkpoint(self.name, size, root or self.tree.root(size), **more)
        sign = partial(key_types.sign, self.key)
        return checkpoint.with_signatures(self.signer.sign(checkpoint.body, sign))

    def request(self, old, size=None, proof=None, **more):
        """Return the body of a request for a cosignature."""
        checkpoint = self.checkpoint(size, **more)
        if proof is None:
            proof = self.tree.consistency_proof(min(old, checkpoint.size), checkpoint.size)
        lines = "".join(f"{encoded(each)}\n" for each in proof)
        return f"old {old}\n{lines}\n{checkpoint.text}".encode()
