"""Authentication of callers by API keys, and what each key allows.

A caller sends its key as `Authorization: Bearer KEY` (RFC 6750), over gRPC as metadata of that name. What knows only
user names and passwords, like a browser, sends it as the password of Basic (RFC 7617); the user name is not read.

The agent brings the keys that hold (`keys.json`), by the SHA-256 of their text: a key has 256 random bits, which no
slower hash would make harder to guess. A worker looks for a new file once a second.
"""

import base64
import binascii
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_deploy_plugin.errors import ScopeMissing, Unauthenticated
from mlflow_deploy_plugin.statedir import KEYS, LOCAL_KEY, ApiKeys, KeyEntry, Scope, read_state

_LOOK_SECONDS = 1.0
_LOCAL = KeyEntry(name="this machine", scopes=("infer", "read", "admin"))
_HOW = "send Authorization: Bearer KEY; `onnxserve keys create` makes a key"


@dataclass
class Authenticator:
    """The callers that one worker answers.

    Attributes:
        is_required: False: everybody may do everything, and `require` is not to be called.
    """

    state_dir: Path
    is_required: bool
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._keys: Mapping[str, KeyEntry] = {}
        self._files: tuple[float, ...] = ()
        self._look_at = 0.0

    def require(self, headers: Mapping[str, str], scope: Scope, endpoint: str | None = None) -> KeyEntry:
        """Return the caller's key if it allows this.

        Args:
            headers: names in lower case; gRPC's metadata.
            endpoint: None: not about one endpoint.

        Raises:
            Unauthenticated: there is no key, or it does not hold (any more).
            ScopeMissing: it holds for something else.
        """
        key = _sent_key(headers.get("authorization", ""))
        now = self.clock()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            self._read_keys()
        entry = self._keys.get(hashlib.sha256(key).hexdigest())
        if entry is None:
            raise Unauthenticated(f"the key in Authorization is not known here, or was revoked; {_HOW}")
        if entry.expires_at is not None and entry.expires_at <= now:
            raise Unauthenticated(f"the key {entry.name!r} has expired; {_HOW}")
        if scope not in entry.scopes:
            raise ScopeMissing(f"the key {entry.name!r} is for {', '.join(entry.scopes)}; this needs {scope}")
        if entry.endpoints and (endpoint is None or endpoint not in entry.endpoints):
            asked = "the whole server" if endpoint is None else f"endpoint {endpoint[:100]!r}"
            raise ScopeMissing(f"the key {entry.name!r} is for {', '.join(entry.endpoints)}; this is about {asked}")
        return entry

    def _read_keys(self) -> None:
        """Read the files that have changed. An unreadable one leaves the keys as they are."""
        paths = self.state_dir / KEYS, self.state_dir / LOCAL_KEY
        files = tuple(part for path in paths for part in _identity(path))
        if files == self._files:
            return
        brought = read_state(paths[0], ApiKeys)
        keys = dict(brought.keys) if brought is not None else {}
        if paths[1].is_file():
            keys[hashlib.sha256(paths[1].read_bytes()).hexdigest()] = _LOCAL
        self._keys, self._files = keys, files


def _sent_key(authorization: str) -> bytes:
    """Return the key in the header.

    Raises:
        Unauthenticated: there is none.
    """
    kind, _, sent = authorization.partition(" ")
    match kind.lower():
        case "bearer":
            return sent.strip().encode("utf-8", "surrogateescape")
        case "basic":
            try:
                return base64.b64decode(sent.strip(), validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                raise Unauthenticated(f"the password of Basic in Authorization cannot be read; {_HOW}") from None
        case "":
            raise Unauthenticated(f"this server answers callers with a key only; {_HOW}")
    raise Unauthenticated(f"Authorization is of the kind {kind[:20]!r}; {_HOW}")


def _identity(path: Path) -> tuple[float, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return (0, 0)
    return status.st_ino, status.st_mtime_ns
