"""Masking: what is not to be read in the log or in the spool stands there as a keyed hash, equal where the values are.

Keyed BLAKE2b (RFC 7693) of 128 bits over the value as text, in hexadecimal: without the key nobody can try out values,
and the same value is the same hash in every column, version and server that has the same key.
"""

import fcntl
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

MASK_KEY = "mask.key"
"""The file in a server's state folder. Another server masks alike with a copy of it."""
_KEY_BYTES, _MOST_KEY_BYTES = 32, 64
_DIGEST_BYTES = 16


class ColumnMask:
    """Masks with the key in a file, which is made where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keyed: Any = None  # keyed once: a copy of it costs half of what a new one does

    def ensure_key(self) -> None:
        """Raises InvalidConfig where there is no key, and none can be made."""
        try:
            _read_key(self._path)
        except OSError as error:
            raise InvalidConfig(f"the key of masked columns cannot be read or made: {error}") from None

    def hash_column(self, values: Array) -> list[str | None]:
        """[N] hashes, one for each value, None where there is none; of [N, …] one for each row.

        Raises:
            OSError: the key cannot be read or made.
            InvalidConfig: the file holds none.
        """
        if values.shape == (1,):  # most requests: what follows takes thrice as long
            return [self._masked(float(str(values[0])) if values.dtype.char == "f" else values.item())]
        rows = (
            list(values) if values.dtype == np.float32 else values.tolist()
        )  # of a float32's 0.1 `tolist` makes another
        if values.ndim > 1:
            rows = [orjson.dumps(row, default=str).decode() for row in values.tolist()]
        hashes = {value: self._masked(value) for value in dict.fromkeys(rows)}  # what repeats is hashed once
        return [hashes[value] for value in rows]

    def hash_values(self, values: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
        """The same values, of which those under `names` are masked as in a column.

        Raises: as `column`.
        """
        return {**values, **{name: self._masked(values[name]) for name in values if name in names}}

    def _masked(self, value: Any) -> str | None:
        text = as_key(value)
        if text is None:
            return None
        if self._keyed is None:
            self._keyed = hashlib.blake2b(key=_read_key(self._path), digest_size=_DIGEST_BYTES)
        digest = self._keyed.copy()
        digest.update(text.encode())
        return str(digest.hexdigest())


def _read_key(path: Path) -> bytes:
    """The key, as the file says it in hexadecimal; a new one where there is no file."""
    if not path.exists():
        _make_key(path)
    try:
        key = bytes.fromhex(path.read_text().strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= _MOST_KEY_BYTES:
        raise InvalidConfig(f"{path} holds no key: 32 to {2 * _MOST_KEY_BYTES} hexadecimal digits are expected")
    return key


def _make_key(path: Path) -> None:
    """Writes a new key, unless another worker was faster: all have to have the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            return
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, secrets.token_hex(_KEY_BYTES).encode())
            os.fsync(file)
            os.rename(temporary, path)
        finally:
            os.close(file)
            temporary.unlink(missing_ok=True)
