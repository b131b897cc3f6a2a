"""A file is compared with another file: `onnxserve drift run NAME --rows FILE
--reference FILE`.
"""

from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.watch.drift.references.rows import load_datasets
from mlflow_deploy_plugin.watch.drift.sketches.relations import RELATIONS
from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.monitors.evaluation import judge_and_log
from mlflow_deploy_plugin.watch.monitors.manual_runs import run_files
from tests.support.refusals import mentions, refused

_rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def folder(tmp_path, new_mlflow, new_home):
    return tmp_path


def judged(rows, reference, judge=drift.judge):
    """Return the verdict on the rows, by default without a report."""
    rows.to_parquet("rows.parquet")
    reference.to_csv("reference.csv", index=False)
    return run_files("mine", "rows.parquet", "reference.csv", load_settings(), judge)[1]


def table(count, shift=0.0, start=""):
    frame = pd.DataFrame(
        {"x": _rng.normal(shift, 1, count), "kind": _rng.choice(["a", "b"], count)}
    )
    if start:
        return frame.assign(at=pd.date_range(start, periods=count, freq="10min", tz="UTC"))
    return frame


@pytest.mark.long
def test_rows_without_times_are_independent(folder):
    calm = judged(table(300), table(2000))
    shifted = judged(table(300, 2.0), table(2000), judge_and_log)

    assert calm.state == "no drift"
    assert mentions(calm.notes[0], "neither file")
    assert shifted.state == "drift"
    assert shifted.reason.startswith("x: mean ")
    assert shifted.model == ""
    assert shifted.rows == 300
    run = mlflow.MlflowClient().get_run(shifted.run.run_id)
    assert run.data.tags["onnxserve.tried"] == "rows=rows.parquet, reference=reference.csv"
    assert "onnxserve.verdict" not in run.data.tags
    assert not (folder / "home" / "inference_log").exists()


def test_event_times_of_one_file_are_noted():
    answer = judged(table(300), table(500, 0.0, "2024-01-01"))

    assert answer.notes[0].startswith(
        "only one file (not the dataset rows.parquet) has event times"
    )


def test_too_few_rows_are_not_judged():
    answer = judged(table(29), table(500))

    assert answer.state == "not judged"
    assert answer.reason == "the window has 29 rows; min_rows is 30"


def test_sampling_of_large_file_is_noted(monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.watch.drift.references.rows.MAX_ROWS", 400)

    notes = judged(table(1000), table(300)).notes

    assert any(mentions(note, "rows.parquet", "1,000 rows", "400") for note in notes)


@pytest.mark.parametrize(
    ("name", "rows", "error", "said"),
    [
        ("mine", "nothing.csv", NotFound, "the dataset nothing.csv does not exist"),
        ("mine", "mine.txt", InvalidConfig, "the dataset mine.txt cannot be read"),
        ("../mine", "reference.csv", InvalidConfig, "letters, digits"),
    ],
)
def test_invalid_files_or_names_are_refused(folder, name, rows, error, said):
    (folder / "mine.txt").write_text("no table")
    table(40).to_csv("reference.csv", index=False)
    with pytest.raises(error, match=said):
        run_files(name, rows, "reference.csv", load_settings(), judge_and_log)


def compared(rows, reference, **bounds):
    """Return the verdict on a file without a report."""
    return run_files("mine", rows, reference, load_settings(), drift.judge, **bounds)[1]


def with_times(rows):
    """Return the rows with the two columns of times of the same rows."""
    return rows.assign(
        signup_date=rows["at"].dt.tz_localize(None).dt.floor("D"), seen_at=rows["at"]
    ).drop(columns="at")


def test_excluded_columns_are_no_event_times(folder):
    with_times(table(144, 3.0, "2024-03-01")).to_csv("rows.csv", index=False)
    with_times(table(144 * 20, 0.0, "2024-01-01")).to_parquet("reference.parquet")

    with refused(InvalidConfig, "rows.csv", "signup_date, seen_at", "_event_time", "--exclude"):
        compared("rows.csv", "reference.parquet", min_rows=100)
    without, in_time = (
        compared("rows.csv", "reference.parquet", exclude=excluded, min_rows=100)
        for excluded in (("signup_date", "seen_at"), ("signup_date",))
    )

    assert without.state == in_time.state == "drift"
    assert without.notes[0].startswith("neither file has event times")
    assert str(in_time.window) == "2024-03-01/2024-03-02"
    assert not any("independent" in note for note in in_time.notes)
    reasons = {finding.subject: finding.reason for finding in without.findings}
    assert reasons["signup_date"] == reasons["seen_at"] == "--exclude excludes it"


def test_assumed_event_times_are_noted(folder):
    for name in ("rows", "reference"):
        births = pd.date_range("1950-01-01", periods=40, freq="h")
        table(40).assign(birth_date=births).to_csv(f"{name}.csv", index=False)

    notes = compared("rows.csv", "reference.csv").notes

    for name in ("rows.csv", "reference.csv"):
        assert any(mentions(note, name, "birth_date", "_event_time", "--exclude") for note in notes)
    assert not any(
        mentions(note, "birth_date", "_event_time")
        for note in compared("rows.csv", "reference.csv", exclude=("birth_date",)).notes
    )


def written(name, columns):
    """Write the same rows as CSV and as Parquet, and return the names of the files."""
    table = pa.table(columns)
    pa_csv.write_csv(table, f"{name}.csv")
    pq.write_table(table, f"{name}.parquet")
    return [f"{name}.csv", f"{name}.parquet"]


CODES = ["01234", "02345", "90210"]
SAME_ROWS: dict[str, list[Any]] = {
    "codes with leading zeros": CODES,
    "codes of digits alone": ["1234", "2345"],
    "texts that may be missing": ["north", "south", None],
    "Namibia": ["NA", "DE", None],
    "Y and N": ["Y", "N", "N"],
    "booleans": [True, False, None],
    "texts of booleans": ["True", "False", "FALSE"],
    "0 and 1": [0, 1, 1],
    "texts of 0 and 1": ["0", "1"],
    "whole numbers beyond 2**53": [2**53 + 1, 2**53 + 3, 2**63 - 1, None],
    "whole numbers beyond 2**63": [2**64 - 1, 2**63 + 1],
    "fractions of which some are missing": [1.5, -0.25, None],
    "dates in another order": ["31.01.2024", "01/02/2024"],
}


def test_csv_and_parquet_are_equal(folder):
    kinds = {"whole numbers beyond 2**63": pa.uint64()}
    csv, parquet = written(
        "same",
        {
            name: pa.array((values * 60)[:120], kinds.get(name))
            for name, values in SAME_ROWS.items()
        },
    )

    schemas = [read.table.schema for read in load_datasets([csv, parquet])]
    assert schemas == [pq.read_schema(parquet)] * 2
    for rows, reference in ((csv, parquet), (parquet, csv)):
        verdict = compared(rows, reference)
        alarms = [finding.subject for finding in verdict.findings if finding.is_alarm]
        assert (verdict.state, alarms) == ("no drift", [])


@pytest.mark.parametrize(
    ("recent", "training", "file", "check"),
    [
        ([int(code) for code in CODES] * 100, CODES * 100, "training.csv", "unseen"),
        ([*map(str, range(299)), "n/d"], list(range(300)), "training.parquet", "type"),
    ],
    ids=["codes without leading zeros", "a number that became a text"],
)
def test_changed_column_type_is_drift(folder, recent, training, file, check):
    written("recent", {"x": recent})
    written("training", {"x": training})

    changed = compared("recent.csv", file)

    assert changed.state == "drift"
    assert (changed.findings[0].subject, changed.findings[0].check) == ("x", check)
    assert compared("training.csv", "training.csv").state == "no drift"


@pytest.mark.parametrize(
    ("named", "state", "judged"),
    [
        ({"columns": ("calm",)}, "no drift", {"calm"}),
        ({"columns": ("calm", "wild")}, "drift", {"calm", "wild", RELATIONS}),
        ({"exclude": ("wild",)}, "no drift", {"calm", "id", RELATIONS}),
        ({"columns": ("calm", "wild"), "exclude": ("wild",)}, "no drift", {"calm"}),
        ({"exclude": ("calm", "wild", "id")}, "not judged", set()),
    ],
)
def test_columns_are_included_and_excluded(folder, named, state, judged):
    # Other rows, from a generator that other tests use, are drift in 5 % of orders.
    rng = np.random.default_rng(0)
    for name, shift in (("recent", 3), ("training", 0)):
        written(
            name,
            {
                "calm": rng.normal(0, 1, 400),
                "wild": rng.normal(shift, 1, 400),
                "id": list(range(400)),
            },
        )

    verdict = compared("recent.parquet", "training.parquet", **named)

    assert verdict.state == state
    assert {
        finding.subject for finding in verdict.findings if finding.state != "not judged"
    } == judged


@pytest.mark.parametrize("option", ["columns", "exclude"])
def test_unknown_column_is_refused_with_a_suggestion(folder, option):
    written("recent", {"temperature": [1.0] * 300})

    with refused(InvalidConfig, "'temprature'", "'temperature'"):
        compared("recent.csv", "recent.parquet", **{option: ("temprature",)})
