"""The page of models that another server serves: its commands, from the logs of the
other server to the verdict.
"""

import re

import mlflow
import pytest

from tests.support.guides import page_reader
from tests.support.tracking import tracking_at

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_page_of_observed_models_runs(new_home, new_database, tmp_path):
    uri = new_database(tmp_path)
    reader = page_reader(tmp_path, uri)

    _, commands, table = reader.run_page("watch-others.md")

    verdicts = re.findall(r"(\S+)/\S+: (no drift|drift|.*)$", commands, flags=re.MULTILINE)
    expected = {f"2026-01-{day:02}": "drift" if day >= 15 else "no drift" for day in range(1, 20)}
    assert dict(verdicts) == expected
    assert re.search(r"43,200 of 43,200 labelled rows are in the log", commands)
    assert re.search(r"^churn +onnxserve:/observed +models:/churn/1", commands, flags=re.MULTILINE)
    assert len(re.findall("no drift$", table, flags=re.MULTILINE)) == 2
    assert re.search(r"^2025-11-01 00:00:00 +r0 +shop", table, flags=re.MULTILINE)
    with tracking_at(uri):
        runs = mlflow.search_runs(experiment_names=["onnxserve/churn"], output_format="list")
    starts = [run.data.tags.get("onnxserve.window.start", "")[:10] for run in runs]
    assert sorted(filter(None, starts)) == sorted(expected)
