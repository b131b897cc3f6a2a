"""The last requests of all workers, for the page Requests.

A worker remembers its last requests per endpoint and status, and writes them once per
second to a file next to its metrics, which the other workers read. The files contain no
values: the page reads captured values from the spool.
"""

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from operator import itemgetter
from pathlib import Path

import orjson

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.serve.messages import without_keys

_WRITE_SECONDS = 1.0
_MOST_REMEMBERED = 50
_MOST_WRITTEN = 1000
_MOST_CHARACTERS = 200
"""Limits: requests per endpoint and status in memory, requests per worker in its file,
characters per message.
"""

Origin = tuple[int, str, str, str, str]
"""Status, endpoint, variant, version, and protocol; the method and path of a request
that is not a prediction.
"""
RecentRequest = tuple[Origin, int, float, int, str, str, str]
"""Origin, arrival in µs since 1970 (UTC), seconds, rows (0: unknown), prediction id,
error code and message. All requests of a plan share an origin, because creating a
longer tuple takes more time.
"""


class RecentRequests:
    """The last requests of this worker, which continues the file `number` in `folder`,
    and of other workers' files.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"requests_{number}.json"
        self._rings: dict[tuple[str, int], deque[RecentRequest]] = {}
        self._served = set[str]()
        self._written = list[RecentRequest]()
        self._stopping = threading.Event()
        for request in reversed(_read(self._path)):
            self.ring(request[0]).append(request)
        threading.Thread(
            target=self._write_regularly, name="onnxserve-requests", daemon=True
        ).start()

    def close(self) -> None:
        self._stopping.set()
        self.write()

    def follow(self, table: Iterable[str]) -> None:
        """Forget the requests of deleted endpoints, because a new endpoint of the same
        name may have other readers.
        """
        gone = self._served.difference(table)
        self._served = set(table)
        self._rings = {key: ring for key, ring in list(self._rings.items()) if key[0] not in gone}

    def ring(self, origin: Origin) -> deque[RecentRequest]:
        """Return the last requests with the origin's endpoint and status, to which a
        caller may append.
        """
        return self._rings.setdefault((origin[1], origin[0]), deque(maxlen=_MOST_REMEMBERED))

    def add(
        self,
        origin: Origin,
        seconds: float,
        rows: int,
        prediction_id: str,
        error: OnnxserveError | None,
    ) -> None:
        """Remember a request that took `seconds` until now. With a variant, a message
        may quote values: omit it.
        """
        code = ""
        message = ""
        if error:
            code = error.error_code
            if not origin[2]:
                message = one_line(without_keys(error.message), _MOST_CHARACTERS)
        arrived = int((time.time() - seconds) * 1e6)
        self.ring(origin).append((origin, arrived, seconds, rows, prediction_id, code, message))

    def read(self) -> list[RecentRequest]:
        """Return the requests of all workers, newest first. Requests of other workers
        appear after up to a second.
        """
        paths = (path for path in self._path.parent.glob("requests_*.json") if path != self._path)
        return sorted(chain(self._own(), *map(_read, paths)), key=itemgetter(1), reverse=True)

    def write(self) -> None:
        """Write the newest requests to this worker's file if they have changed."""
        newest = self._own()[:_MOST_WRITTEN]
        # The next server may have removed the folder.
        if newest != self._written and self._path.parent.is_dir():
            # Shared memory may be full, or a text may contain a lone surrogate.
            with suppress(OSError, TypeError):
                write_atomically(self._path, orjson.dumps(newest))
                self._written = newest

    def _own(self) -> list[RecentRequest]:
        rings = [ring.copy() for ring in list(self._rings.values())]
        return sorted(chain.from_iterable(rings), key=itemgetter(1), reverse=True)

    def _write_regularly(self) -> None:
        while not self._stopping.wait(_WRITE_SECONDS):
            self.write()


def _read(path: Path) -> list[RecentRequest]:
    """Return the requests in a worker's file; none if it is missing or malformed."""
    with suppress(OSError, ValueError):
        return [(tuple(origin), *rest) for origin, *rest in orjson.loads(path.read_bytes())]
    return []
