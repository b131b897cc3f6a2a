"""What the processes of one server tell each other, on a disk that may be full."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_deploy_plugin.server.state import write_atomically


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file of this process can grow beyond 100 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("full_disk")
def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "state.json", b"old")
    with pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "state.json", b"x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"old"
