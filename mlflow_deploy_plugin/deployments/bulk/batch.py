"""A batch: some rows of a file, ready to be sent, which know where in the file they stand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class RowBatch:
    """Rows that are asked about at once.

    Attributes:
        records: the rows in a form of the reader's own, which can be sliced.
        places: of each row, where it stands: `line 7`, `row 12`.
        content_type / encode: what makes a body of /invocations of such records.
        position: how far in the file the reader is after them; in bytes, or rows.
    """

    records: Any
    places: Sequence[str]
    content_type: str
    encode: Callable[[Any], bytes]
    position: int = 0

    def __len__(self) -> int:
        return len(self.places)

    @property
    def body(self) -> bytes:
        return self.encode(self.records)

    def part(self, start: int, stop: int) -> "RowBatch":
        return replace(self, records=self.records[start:stop], places=self.places[start:stop])
