"""Folders of files that are each named by a digest of all that they depend on; the least recently used are deleted."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class FileCache:
    """A folder of at most so many files, or bytes. A file is there whole or not at all."""

    folder: Path
    suffix: str
    max_files: int = sys.maxsize
    max_bytes: int = sys.maxsize

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}{self.suffix}"

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Yield a temporary path, whose file takes the place of `path`. A disk that takes no file costs only time."""
        temporary = self.folder / f".{os.urandom(8).hex()}{self.suffix}"
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
            self._evict(path)
        except OSError:
            pass
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    def _evict(self, newest: Path) -> None:
        states = [(path, path.stat()) for path in self.folder.glob(f"*{self.suffix}")]
        size = 0
        for number, (path, state) in enumerate(sorted(states, key=lambda one: one[1].st_mtime_ns, reverse=True)):
            size += state.st_size
            is_abandoned = path.name.startswith(".") and state.st_mtime < time.time() - _ABANDONED_SECONDS
            is_surplus = size > self.max_bytes or number >= self.max_files
            if path != newest and (is_abandoned or is_surplus):
                path.unlink(missing_ok=True)
