"""A disk that is full, or read-only."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writes beyond `size` bytes come short, then fail with EFBIG (SIGXFSZ is ignored by Python).

    It holds for the file that the tests' own output may go to as well: for the one call under test, nothing more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody make, replace or remove a file in the folder; those that are open are written further."""
    if os.geteuid():
        below = [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]
        for path in below:
            path.chmod(0o500)
        try:
            yield
        finally:
            for path in below:
                path.chmod(0o700)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode:
        pytest.skip("a read-only folder for root needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
