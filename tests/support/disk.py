"""A disk that is full or read-only."""

import os
import resource
import subprocess
from contextlib import contextmanager

import pytest


@contextmanager
def files_of_at_most(size):
    """Let writes beyond `size` bytes be truncated, then fail with EFBIG (Python ignores
    SIGXFSZ).

    The limit also applies to a file that receives the tests' output, so use it only
    around the call under test.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """Make creating, replacing and removing files in the folder fail. Open files can
    still be written.
    """
    if os.geteuid():
        below = [
            folder,
            *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()),
        ]
        for path in below:
            path.chmod(0o500)
        try:
            yield
        finally:
            for path in below:
                path.chmod(0o700)
        return
    if subprocess.run(
        ["mount", "--bind", folder, folder], capture_output=True, check=False
    ).returncode:
        pytest.skip("a read-only folder for root needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def tiny_disk(folder):
    """Mount a disk of 4 KiB at the folder."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a full disk needs the right to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
