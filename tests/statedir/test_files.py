"""State files are written whole or not at all, also on a full disk."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.statedir import write_atomically
from tests.support.disk import files_of_at_most


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "state.json", b"old")
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        write_atomically(tmp_path / "state.json", b"x" * 200)
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_bytes() == b"old"
