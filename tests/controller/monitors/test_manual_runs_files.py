"""A file judged beside a file: `onnxserve drift run NAME --rows FILE --reference FILE`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.controller.monitors.evaluation import EvaluatedWindow, judge_and_log
from mlflow_deploy_plugin.controller.monitors.manual_runs import run_files
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.settings import load_settings
from tests.support.tracking import tracking_at

_rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, new_database: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)):
        yield tmp_path


def judged(rows: pd.DataFrame, reference: pd.DataFrame, **bounds: float) -> EvaluatedWindow:
    rows.to_parquet("rows.parquet")
    reference.to_csv("reference.csv", index=False)
    settings = load_settings()
    return run_files("mine", "rows.parquet", "reference.csv", settings, judge_and_log, **bounds)[1]


def table(count: int, shift: float = 0.0, start: str = "") -> pd.DataFrame:
    found = pd.DataFrame({"x": _rng.normal(shift, 1, count), "kind": _rng.choice(["a", "b"], count)})
    return found.assign(at=pd.date_range(start, periods=count, freq="10min", tz="UTC")) if start else found


def test_rows_without_times_are_judged_as_independent_ones_and_nothing_is_left_but_the_report(folder: Path) -> None:
    calm, shifted = judged(table(300), table(2000)), judged(table(300, 2.0), table(2000))

    assert calm.result.state == "no drift"
    assert "neither file says when its rows happened" in calm.result.notes[0]
    assert shifted.result.state == "drift"
    assert shifted.result.reason.startswith("x: mean ")
    assert (shifted.result.model, shifted.result.rows) == ("", 300)
    run = mlflow.MlflowClient().get_run(shifted.run.run_id)
    assert run.data.tags["onnxserve.tried"] == "rows=rows.parquet, reference=reference.csv"
    assert "onnxserve.verdict" not in run.data.tags
    assert not (folder / "home" / "inference_log").exists()


def test_rows_with_times_are_one_window_beside_the_windows_of_the_reference() -> None:
    answer = judged(table(144, 3.0, "2024-03-01"), table(144 * 40, 0.0, "2024-01-01"), min_rows=100)

    assert str(answer.result.window) == "2024-03-01/2024-03-02"
    assert answer.result.state == "drift"
    assert "windows" in answer.result.reason
    assert not any("independent" in note for note in answer.result.notes)


def test_times_on_one_side_alone_are_said() -> None:
    answer = judged(table(300), table(2000, 0.0, "2024-01-01"))

    assert answer.result.notes[0].startswith("only one file (not the dataset rows.parquet) says when its rows")


def test_too_few_rows_are_not_judged() -> None:
    answer = judged(table(50), table(2000))

    assert (answer.result.state, answer.result.reason) == ("not judged", "the window has 50 rows; min_rows is 200")


def test_rows_of_which_a_sample_is_judged_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_deploy_plugin.monitoring.drift.references.rows.MAX_ROWS", 400)

    notes = judged(table(1000), table(300)).result.notes

    assert "the dataset rows.parquet has 1,000 rows, of which 400 are read" in notes


@pytest.mark.parametrize(
    ("name", "rows", "error", "said"),
    [
        ("mine", "nothing.csv", NotFound, "the dataset nothing.csv does not exist"),
        ("mine", "mine.txt", InvalidConfig, "the dataset mine.txt cannot be read"),
        ("../mine", "reference.csv", InvalidConfig, "letters, digits"),
    ],
)
def test_what_cannot_be_judged_is_said(folder: Path, name: str, rows: str, error: type[Exception], said: str) -> None:
    (folder / "mine.txt").write_text("no table")
    table(40).to_csv("reference.csv", index=False)
    with pytest.raises(error, match=said):
        run_files(name, rows, "reference.csv", load_settings(), judge_and_log)
