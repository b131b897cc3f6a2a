"""docs/monitor-quickstart.md does what it says: its blocks are taken out of the page and run, in their order."""

import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.support.deployments import empty_home
from tests.support.guides import run_page
from tests.support.tracking import tracking_at


@pytest.mark.long
def test_the_page_shows_the_first_verdicts(tmp_path: Path, new_database: Callable[[Path], str]) -> None:
    uri = new_database(tmp_path)
    with empty_home(tmp_path):
        _, files, monitored, labelled, longer = run_page("monitor-quickstart.md", tmp_path, uri)

    calm, shifted = re.findall(r"^cancer drift \S+: (.*)\n  228 rows\n  (.*)", files, re.MULTILINE)
    assert calm[0] == "no drift"
    assert shifted[0] == "drift"
    assert shifted[1].startswith("mean radius: mean 14.23 → 18.17, higher")
    assert re.search(r"^cancer drift \S+: no drift\n  model cancer version 1, 228 rows$", monitored, re.MULTILINE)
    assert re.search(r"^cancer +drift +drift +10m +waiting +\S+ +no drift", monitored, re.MULTILINE)
    assert re.search(r"^cancer accuracy \S+: not judged$", labelled, re.MULTILINE)
    assert "estimated accuracy: estimated 0.9" in labelled
    assert "of 228 rows that they name, 228 are in the log" in labelled
    assert re.search(r"^cancer accuracy \S+ \(revision 2\): kept$", labelled, re.MULTILINE)
    assert re.search(r"^cancer +drift +drift +1d +waiting", longer, re.MULTILINE)
    with tracking_at(uri):
        experiment = mlflow.get_experiment_by_name("onnxserve/cancer")
        runs = mlflow.search_runs([experiment.experiment_id], "tags.`onnxserve.tried` != ''", output_format="list")
        for run in runs:
            assert "report.html" in [one.path for one in mlflow.MlflowClient().list_artifacts(run.info.run_id)]
    assert len(runs) == 2
