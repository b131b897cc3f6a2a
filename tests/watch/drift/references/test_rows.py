"""Rows of references: training samples, served or downloaded, and datasets with and
without event times.
"""

import json
import shutil
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml

from mlflow_deploy_plugin.core.errors import InvalidArtifact, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.registry.datasets import dataset_columns
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.drift.references.load import load_reference
from mlflow_deploy_plugin.watch.drift.references.rows import load_datasets
from mlflow_deploy_plugin.watch.drift.sketches.relations import without_projections
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.inference_log import ENDPOINT, MODEL, LogWriter
from tests.support.refusals import refused
from tests.watch.conftest import FIRST_DAY, reference_of_days, serve, write_model
from tests.watch.drift.sketches.test_sketch import assert_same

from .conftest import DAY, DAYS, ROWS


def test_model_without_reference_is_refused(ask, tmp_path):
    serve(
        tmp_path / "home" / "deployments" / ENDPOINT,
        write_model(tmp_path / "models" / "2", None),
        "2",
    )

    with refused(InvalidArtifact, "version 2", "no reference"):
        ask(version="2")


@pytest.mark.parametrize(
    ("bound", "size"), [("_MAX_VALUES", "4,320 values"), ("MAX_BYTES", "more than 1,000")]
)
def test_too_large_reference_is_refused(ask, monkeypatch, bound, size):
    monkeypatch.setattr(f"mlflow_deploy_plugin.core.tabular.streams.{bound}", 1000)

    with refused(InvalidArtifact, "'reference.parquet'", size):
        ask()


@pytest.mark.parametrize("is_folder", [False, True])
def test_too_large_lists_are_refused(tmp_path, monkeypatch, is_folder):
    monkeypatch.setattr("mlflow_deploy_plugin.core.tabular.streams._MAX_VALUES", 1000)
    for part in range(2):
        table = pa.table({"x": [[0.0] * 499] * 3})
        pq.write_table(table, tmp_path / f"{part}.parquet")

    with refused(InvalidConfig, "values", "1,000"):
        load_datasets([str(tmp_path if is_folder else tmp_path / "0.parquet")])


def test_unserved_version_is_downloaded_once(world):
    shutil.rmtree(world.state_dir)
    request = WindowRequest(ENDPOINT, "drift", MonitorSpec(), DAY, 1, world.settings)
    first = load_reference(request, MODEL, "1")
    shutil.rmtree(world.model_folder)

    again = load_reference(request, MODEL, "1")

    assert again.model_id == world.model_id
    assert again.bins_key == first.bins_key
    for window, other in zip(first.pieces.windows, again.pieces.windows, strict=True):
        assert_same(window, other)
    for path in (world.settings.cache_path / "references").glob("*.parquet"):
        path.write_bytes(b"broken")
    assert_same(load_reference(request, MODEL, "1").pieces.total, first.pieces.total)


@pytest.mark.parametrize(("suffix", "column"), [("parquet", "_event_time"), ("csv", "when")])
def test_dataset_is_a_reference(ask, days, tmp_path, suffix, column):
    table = reference_of_days(days)
    table = table.rename_columns(
        [column if name == "_event_time" else name for name in table.column_names]
    )
    path = tmp_path / f"calm.{suffix}"
    (pq.write_table if suffix == "parquet" else pa_csv.write_csv)(table, path)

    reference = ask(f"dataset:{path}")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS
    assert set(without_projections(reference.bins)) == {*days[0]} - {"_event_time"}
    assert set(ask(f"dataset:file://{path}").bins) == set(reference.bins)


def nanoseconds(times, zone):
    return pa.array(times.cast(pa.int64()).to_numpy() * 1000 + 1, pa.timestamp("ns", tz=zone))


def as_texts(times, form):
    return pa.array([time.strftime(form) for time in times.to_pylist()])


@pytest.mark.parametrize(
    ("convert", "form"),
    [
        (nanoseconds, None),
        (nanoseconds, "UTC"),
        (as_texts, "%Y-%m-%d %H:%M:%S"),
        (as_texts, "%Y-%m-%dT%H:%M:%SZ"),
    ],
)
def test_times_may_be_nanoseconds_or_texts(ask, days, tmp_path, convert, form):
    table = reference_of_days(days)
    times = convert(table["_event_time"], form)
    path = tmp_path / "calm.parquet"
    pq.write_table(table.drop_columns("_event_time").append_column("_event_time", times), path)

    reference = ask(f"dataset:{path}")

    assert [block.rows for block in reference.pieces.windows] == [ROWS] * DAYS


@pytest.mark.parametrize(
    ("content", "error", "names"),
    [
        (None, NotFound, ["does not exist"]),
        (b"no parquet", InvalidConfig, ["cannot be read"]),
        (pa.table({"a": pa.array([], pa.int64())}), InvalidConfig, ["no rows"]),
        (pa.table({"a": [FIRST_DAY], "b": [FIRST_DAY]}), InvalidConfig, ["time columns", "(a, b)"]),
        (pa.table({"_event_time": [FIRST_DAY, None]}), InvalidConfig, ["1 rows", "_event_time"]),
        (pa.table({"_event_time": [1372636800]}), InvalidConfig, ["_event_time", "int64"]),
        (pa.table({"_event_time": ["31.07.2013"]}), InvalidConfig, ["'31.07.2013'", "a timestamp"]),
    ],
)
def test_invalid_dataset_is_refused(ask, tmp_path, content, error, names):
    path = tmp_path / "data.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        pq.write_table(content, path)

    with refused(error, str(path), *names):
        ask(f"dataset:{path}")


@pytest.mark.parametrize("name", ["a", "_event_time"])
def test_duplicate_column_names_are_refused(ask, tmp_path, name):
    path = tmp_path / "data.csv"
    path.write_text(f"{name},{name}\n2013-01-01T00:00:00,2013-01-01T00:00:00\n")

    with refused(InvalidConfig, "two columns", repr(name)):
        ask(f"dataset:{path}")


@pytest.mark.parametrize(
    ("signature", "logged", "kind"),
    [
        ("string", ["01234"], "string"),
        ("string", [1234], "string"),
        ("long", [1234], "int64"),
        ("", ["01234"], "string"),
        ("", [1234.5], "double"),
        ("", None, "int64"),
    ],
)
def test_csv_types_follow_signature_or_log(tmp_path, signature, logged, kind):
    settings = Settings(home=tmp_path / "home", log_uri=str(tmp_path / "log"))
    columns = {} if logged is None else {"zip": logged}
    LogWriter(tmp_path / "log").write(
        {"_event_time": [datetime(2013, 2, 1, 9, tzinfo=UTC)], "y": [1], **columns}
    )
    folder = write_model(tmp_path / "model", None)
    if signature:
        document = yaml.safe_load((folder / "MLmodel").read_text())
        inputs = json.dumps([{"type": signature, "name": "zip", "required": True}])
        (folder / "MLmodel").write_text(
            yaml.safe_dump({**document, "signature": {"inputs": inputs, "outputs": None}})
        )
    serve(settings.state_dir(ENDPOINT), folder)
    (tmp_path / "calm.csv").write_text("zip,y\n1234,1\n90210,0\n,1\n")
    spec = MonitorSpec(reference=f"dataset:{tmp_path / 'calm.csv'}")

    reference = load_reference(WindowRequest(ENDPOINT, "drift", spec, DAY, 1, settings), MODEL, "1")

    types = {name: reference.bins[name].arrow_type for name in without_projections(reference.bins)}
    assert types == {"zip": kind, "y": "int64"}
    assert reference.pieces.total.columns["zip"].missing == 1


def test_csv_files_of_a_folder_have_one_type(tmp_path):
    (tmp_path / "data" / "_hidden").mkdir(parents=True)
    (tmp_path / "data" / "a.csv").write_text("zip,n\n1234,1\n")
    (tmp_path / "data" / "b.csv").write_text("n,zip\n2.5,01234\n")
    (tmp_path / "data" / "_hidden" / "c.csv").write_text("n,zip\nx,x\n")

    (rows,) = load_datasets([str(tmp_path / "data")])

    assert rows.table.to_pydict() == {"zip": ["1234", "01234"], "n": [1.0, 2.5]}
    assert dataset_columns(str(tmp_path / "data")) == ("zip", "n")
