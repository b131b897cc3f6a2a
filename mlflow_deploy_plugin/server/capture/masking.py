"""Masking: a masked column holds a keyed hash in the spool and in the log, equal where the values are equal.

The hash is keyed BLAKE2b (RFC 7693) of 128 bits over the value as text, in hexadecimal. Without the key nobody can try
out values. The same value has the same hash in every column, version and server that has the same key.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.runtime import Array, as_key
from mlflow_deploy_plugin.statedir import locked

MASK_KEY = "mask.key"
"""The file in a server's state folder. Another server with a copy of it makes the same hashes."""
_KEY_BYTES, _MAX_KEY_BYTES = 32, 64
_DIGEST_BYTES = 16


class ColumnMask:
    """Hashes values with the key in a file; the file is made if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keyed: Any = None  # keyed once: a copy of it costs half of what a new one does

    def ensure_key(self) -> None:
        """Raise InvalidConfig if there is no key and none can be made."""
        try:
            _read_key(self._path)
        except OSError as error:
            raise InvalidConfig(f"the key of masked columns cannot be read or made: {error}") from None

    def hash_column(self, values: Array) -> list[str | None]:
        """Return [N] hashes, None for a missing value; for [N, …] values one hash a row.

        Raises:
            OSError: the key cannot be read or made.
            InvalidConfig: the file holds no key.
        """
        if values.shape == (1,):  # most requests: what follows takes thrice as long
            return [self._hash(float(str(values[0])) if values.dtype.char == "f" else values.item())]
        # `tolist` turns a float32's 0.1 into another number
        rows = list(values) if values.dtype == np.float32 else values.tolist()
        if values.ndim > 1:
            rows = [orjson.dumps(row, default=str).decode() for row in values.tolist()]
        hashes = {value: self._hash(value) for value in dict.fromkeys(rows)}  # repeated values are hashed once
        return [hashes[value] for value in rows]

    def hash_values(self, values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
        """Return the values with those under `names` hashed as in a column.

        Raises: as `hash_column`.
        """
        return {**values, **{name: self._hash(values[name]) for name in values if name in names}}

    def _hash(self, value: Any) -> str | None:
        text = as_key(value)
        if text is None:
            return None
        if self._keyed is None:
            self._keyed = hashlib.blake2b(key=_read_key(self._path), digest_size=_DIGEST_BYTES)
        digest = self._keyed.copy()
        digest.update(text.encode())
        return str(digest.hexdigest())


def _read_key(path: Path) -> bytes:
    """Return the key that the file holds in hexadecimal; make a new one if there is no file."""
    if not path.exists():
        with locked(path.with_name(f".{path.name}.lock")):  # all workers need the same one
            if not path.exists():
                temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
                file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    os.write(file, secrets.token_hex(_KEY_BYTES).encode())
                    os.fsync(file)
                    os.rename(temporary, path)
                finally:
                    os.close(file)
                    temporary.unlink(missing_ok=True)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= _MAX_KEY_BYTES:
        raise InvalidConfig(f"{path} holds no key: 32 to {2 * _MAX_KEY_BYTES} hexadecimal digits are expected")
    return key
