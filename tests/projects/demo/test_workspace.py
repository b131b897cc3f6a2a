"""Tests of the demo's folder, which each run empties, and of folders that the demo must
not empty.
"""

import subprocess

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.demo.workspace import Workspace


def test_a_folder_with_somebody_elses_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(InvalidConfig, match="--home"):
        Workspace(tmp_path).check()


def test_a_new_an_empty_and_its_own_folder_are_fine(tmp_path):
    workspace = Workspace(tmp_path / "demo")
    workspace.check()
    workspace.home.mkdir()
    workspace.check()
    workspace.empty()
    (workspace.reports / "old.html").write_text("of an earlier run")
    workspace.check()
    workspace.empty()
    assert not list(workspace.reports.iterdir())


@pytest.mark.long
def test_the_command_that_stops_the_demo_runs_from_any_folder(tmp_path):
    command = Workspace(tmp_path / "a demo").stop_command

    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.returncode) == ("no server of the demo runs\n", 0), done.stderr
