import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.flavor.mlmodel import data_digest, environment_lock, provenance_section


def test_lock_lists_what_is_installed_by_name() -> None:
    lines = environment_lock().splitlines()

    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert all("==" in line for line in lines)
    assert "scikit-learn" in names
    assert names == sorted(names)


def test_digest_follows_the_values() -> None:
    table = pd.DataFrame({"a": [1.0, 2.0], "city": ["rome", None]})

    assert data_digest(table) == data_digest(table.copy())
    assert data_digest(table) != data_digest(table.assign(a=[1.0, 3.0]))
    assert data_digest({"x": np.ones(2)}) != data_digest({"x": np.zeros(2)})


def test_commit_and_uncommitted_changes_are_recorded(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "train.py").write_text("1")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)

    clean = provenance_section(None, "", tmp_path)
    (tmp_path / "train.py").write_text("2")
    dirty = provenance_section(None, "", tmp_path)

    assert len(clean["git_commit"]) == 40
    assert (clean["git_dirty"], dirty["git_dirty"]) == (False, True)


def test_without_git_there_is_no_commit(tmp_path: Path) -> None:
    found = provenance_section(pd.DataFrame({"a": [1]}), "x==1\n", tmp_path)

    assert "git_commit" not in found
    assert found["dataset_name"] == "reference"
