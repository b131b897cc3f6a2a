"""The demo's folder: it is emptied by each run, and nobody else's is."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from projects.demo.place import Place


def test_a_folder_with_somebody_elses_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(InvalidConfig, match="--home"):
        Place(tmp_path).check()


def test_a_new_an_empty_and_its_own_folder_are_fine(tmp_path: Path) -> None:
    place = Place(tmp_path / "demo")
    place.check()
    place.home.mkdir()
    place.check()
    place.empty()
    (place.reports / "old.html").write_text("of an earlier run")
    place.check()
    place.empty()
    assert not list(place.reports.iterdir())
