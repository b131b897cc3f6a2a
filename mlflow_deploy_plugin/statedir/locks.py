"""Locks between processes of this machine: a file that is held by flock, and is removed when nobody holds it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it. It ends with the process, however that ends."""
    descriptor = _acquire(path)
    try:
        yield
    finally:
        path.unlink(
            missing_ok=True
        )  # while it is held: a process that waits for the old file sees that it is another now
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Return True if some process holds the lock at this moment."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _acquire(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass  # its last holder has just removed the file: the next one is another file
        os.close(descriptor)
