"""The last requests of all workers, for the page Requests.

A worker remembers its last requests of each endpoint and status, and writes them about once per second to a file next
to its metrics, which the other workers read. A flood of one status therefore hides no request with another status.
The files contain no values of requests: the page reads captured values from the spool (`http/pages/requests.py`).
"""

import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import orjson

from mlflow_deploy_plugin.server.messages import RawRequest, without_keys
from mlflow_deploy_plugin.statedir.files import write_atomically

_WRITE_SECONDS = 1.0
_MOST_REMEMBERED, _MOST_WRITTEN = 50, 1000
"""The maximum number of requests per endpoint and status in memory, and per worker in its file."""
_PATH_CHARACTERS = 100

Origin = tuple[int, str, str, str, str]
"""The fields of `RecentRequest` that all requests of a plan share: from `status` to `protocol`."""
Remembered = tuple[Origin, int, float, int, str, str, str]
"""A request in memory: nested, because creating this tuple takes a fifth of the time of a `RecentRequest`."""


class RecentRequest(NamedTuple):
    """A request without its values.

    Attributes:
        endpoint, variant, version: empty if no version was selected.
        protocol: the protocol of a prediction; the method and the path of any other request.
        received_time: microseconds since 1970 (UTC).
        rows: the number of rows; 0 if it is unknown.
        prediction_id: the id with which the request is captured; empty if it has no such id.
        message: the reason of an error before a version was selected; later errors may quote values.
    """

    status: int
    endpoint: str
    variant: str
    version: str
    protocol: str
    received_time: int
    seconds: float
    rows: int
    prediction_id: str
    error_code: str
    message: str


class RecentRequests:
    """The last requests of this worker and of the other workers with files in `folder`. All methods are thread-safe.

    `number` is the worker's number. A worker that replaces a dead worker continues with its file.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._path = folder / f"requests_{number}.json"
        self._rings: dict[tuple[str, int], deque[Remembered]] = {}
        self._served: set[str] = set()
        self._written: list[Remembered] = []
        self._stopping = threading.Event()
        for remembered in _read(self._path):
            self.ring(remembered[0]).append(remembered)

    def start(self) -> None:
        threading.Thread(target=self._write_regularly, name="onnxserve-requests", daemon=True).start()

    def close(self) -> None:
        self._stopping.set()

    def follow(self, table: Iterable[str]) -> None:
        """Forget the requests of the endpoints that are not served any more."""
        served, rings = set(table), list(self._rings.items())
        self._rings = {key: ring for key, ring in rings if key[0] not in self._served - served}
        self._served = served

    def ring(self, origin: Origin) -> deque[Remembered]:
        """Return the requests with the origin's endpoint and status, to which a caller may append."""
        status, endpoint, *_ = origin
        return self._rings.setdefault((endpoint, status), deque(maxlen=_MOST_REMEMBERED))

    def add(
        self, origin: Origin, seconds: float, rows: int = 0, prediction_id: str = "", code: str = "", message: str = ""
    ) -> None:
        """Remember a request that ends now and took `seconds`."""
        received, message = int((time.time() - seconds) * 1e6), _encodable(message)
        self.ring(origin).append((origin, received, seconds, rows, prediction_id, code, message))

    def add_refused(self, request: RawRequest, status: int, code: str) -> None:
        """Remember a refused request that is not a prediction. Its message is left out, because it may quote labels."""
        target = f"{request.method[:20]} {without_keys(request.path)[:_PATH_CHARACTERS]}"
        self.add((status, "", "", "", _encodable(target)), time.perf_counter() - request.arrived, code=code)

    def read(self) -> list[RecentRequest]:
        """Return the requests of all workers, newest first. Those of other workers are up to a second old."""
        others = (path for path in self._path.parent.glob("requests_*.json") if path != self._path)
        remembered = chain(self._snapshot(), *map(_read, others))
        requests = [RecentRequest(*origin, *rest) for origin, *rest in remembered]
        return sorted(requests, key=lambda request: request.received_time, reverse=True)

    def write(self) -> None:
        """Write the newest requests to this worker's file if there are new requests."""
        newest = list(islice(self._snapshot(), _MOST_WRITTEN))
        if newest != self._written and self._path.parent.is_dir():  # A new server may have removed the folder.
            with suppress(OSError):  # Shared memory may be full.
                write_atomically(self._path, orjson.dumps(newest))
                self._written = newest

    def _snapshot(self) -> Iterable[Remembered]:
        """Return the requests of this worker, beginning with the endpoint and status of the newest request."""
        rings = [ring.copy() for ring in list(self._rings.values()) if ring]
        return chain.from_iterable(sorted(rings, key=lambda ring: ring[-1][1], reverse=True))

    def _write_regularly(self) -> None:
        while not self._stopping.wait(_WRITE_SECONDS):
            self.write()


def _encodable(text: str) -> str:
    """Replace lone surrogates, which neither the file nor the page can encode."""
    return text.encode(errors="replace").decode()


def _read(path: Path) -> list[Remembered]:
    with suppress(OSError, ValueError):
        return [(tuple(origin), *rest) for origin, *rest in orjson.loads(path.read_bytes())]
    return []
