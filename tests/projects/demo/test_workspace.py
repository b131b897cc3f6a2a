"""Tests of the demo's folder, which each run empties, and of folders that the demo must
not empty.
"""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.demo.workspace import Workspace


def test_folder_with_foreign_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(InvalidConfig, match="--home"):
        Workspace(tmp_path).check()


def test_new_empty_or_own_folder_is_accepted(tmp_path):
    workspace = Workspace(tmp_path / "demo")
    workspace.check()
    workspace.home.mkdir()
    workspace.check()
    workspace.empty()
    (workspace.reports / "old.html").write_text("of an earlier run")
    workspace.check()
    workspace.empty()
    assert not list(workspace.reports.iterdir())
