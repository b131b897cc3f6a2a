"""File descriptors with low numbers, for libraries that use select().

A worker of pytest opens more than 1,024 files in thousands of tests. `FD_SET` in glibc
aborts the process if a descriptor is larger, and Tk uses it: "bit out of range 0 -
FD_SETSIZE on fd_set". The first test of a run therefore reserves a few low descriptors.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_COUNT = 64
_reserved: list[int] = []


def reserve() -> None:
    """Keep the lowest free descriptors of this process for `released`."""
    while len(_reserved) < _COUNT:
        _reserved.append(os.open(os.devnull, os.O_RDONLY))


@contextmanager
def released() -> Iterator[None]:
    """Free the reserved descriptors for files that are opened in the context. They are
    reserved again afterwards.
    """
    while _reserved:
        os.close(_reserved.pop())
    yield
    reserve()
