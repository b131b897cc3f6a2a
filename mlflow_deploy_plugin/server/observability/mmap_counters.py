"""Numbers of this worker that every worker can read: doubles in a file that is mapped into memory.

The file has the form of prometheus_client's multi-process mode (`prometheus_client/mmap_dict.py` 0.26: bytes in use,
then entries of length, key as JSON, value, time), so that its collector sums it up and forgets the gauges of dead
workers. Its own values take a lock, ask for the process id and pack two numbers at each step; here a step is an
addition to a `memoryview`, and one lock serves all the values of a request (a fifth of the time).
"""

import json
import logging
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path

logger = logging.getLogger(__name__)

_STEP_BYTES = 64 * 1024
_HEADER = struct.Struct("<i4x")  # bytes in use
_LENGTH = struct.Struct("<i")
_LOST = {
    "counter": ("onnxserve_unrecorded", "onnxserve_unrecorded_total"),
    "gauge": ("onnxserve_unrecorded_gauges", "onnxserve_unrecorded_gauges"),
    "histogram": ("onnxserve_unrecorded_histograms", "onnxserve_unrecorded_histograms_sum"),
}
"""Family and sample of the values that found no room, by the type of the file: a family is of one type."""


class MmapCounters:
    """The values of one type of metric (counter, gauge, histogram) of this worker; its caller locks.

    Attributes:
        cells: every double of the file; `cells[slot]` is the value of a slot.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._used, self._size = _HEADER.size, 0
        self._grow()
        self._is_full = False
        family, name = _LOST[path.name.partition("_")[0]]
        self._lost = self.slot(family, name, {}, "Values that found no room in shared memory.")

    def slot(self, family: str, name: str, labels: Mapping[str, str], text: str) -> int:
        """A new value, 0 at first, of the sample `name` of a metric family with the help `text`.

        On a full shared memory, the slot of the values that are lost: what is counted is worth less than the answer.
        """
        shown = {label: value.encode(errors="replace").decode() for label, value in labels.items()}  # half a surrogate
        key = json.dumps([family, name, shown, text], sort_keys=True).encode()
        entry = _LENGTH.pack(len(key)) + key + b" " * (8 - (len(key) + 4) % 8) + bytes(16)
        try:
            while self._used + len(entry) > self._size:
                self._grow()
        except OSError as error:
            if not self._is_full:
                logger.error("no room for %s among the metrics: %s", name, error.strerror)
            self._is_full = True
            return self._lost
        start, self._used = self._used, self._used + len(entry)
        self._bytes[start : self._used] = entry
        self._bytes[: _HEADER.size] = _HEADER.pack(self._used)
        return (self._used - 16) // 8

    def _grow(self) -> None:
        """Takes the room now: a page that is not there when it is written to would be the worker's end (SIGBUS).

        An earlier mapping that a thread still writes to is the same memory.
        """
        os.posix_fallocate(self._file, self._size, _STEP_BYTES)
        self._size += _STEP_BYTES
        self._bytes = memoryview(mmap.mmap(self._file, self._size))
        self.cells = self._bytes.cast("d")
