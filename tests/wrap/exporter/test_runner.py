"""Tests of the exported runner: all kinds of rows, invalid rows,
and its command line.
"""

import json
import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import onnxserve
from mlflow_deploy_plugin.wrap.exporter.runner import Model
from tests.support.models import IDENTITY, parse_graph
from tests.support.random_rows import normal_rows
from tests.support.refusals import refused

FRAME = pd.DataFrame(
    {"carrier": ["UA", "AA"], "distance": [1400.0, -4000.0], "hour": [17, 9], "late": [True, False]}
)


@pytest.fixture(scope="module")
def bundle(mixed, tmp_path_factory):
    return onnxserve.export(str(mixed), "bundle", tmp_path_factory.mktemp("bundle") / "b").path


@pytest.fixture(scope="module")
def model(bundle):
    return Model(bundle / "model.onnx")


@pytest.mark.parametrize(
    "rows",
    [
        FRAME,
        {name: FRAME[name].to_numpy() for name in FRAME},
        {name: FRAME[name].tolist() for name in FRAME},
        FRAME.to_dict("records"),
        FRAME.to_numpy(),
        FRAME.to_numpy().tolist(),
        FRAME.astype({"hour": float}).to_dict("records"),
    ],
    ids=["frame", "arrays", "lists", "records", "array", "rows", "whole numbers as floats"],
)
def test_rows_of_every_kind_are_answered(model, rows):
    assert model.predict(rows).tolist() == ["yes", "no"]
    assert model.outputs(rows)["probabilities"].shape == (2, 2)


def test_model_has_its_name_and_columns(model):
    assert model.name == "flight-delay"
    assert model.version == "m-1"
    assert model.classes == ["no", "yes"]
    assert model.columns == ["carrier", "distance", "hour", "late"]
    assert model.predict(FRAME.iloc[0].to_dict()).tolist() == ["yes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carrier": [1, 2]}, "column 'carrier', row 0: 1; expected a string"),
        ({"carrier": ["UA", None]}, "column 'carrier', row 1: None; expected a string"),
        ({"distance": ["far", 1]}, "column 'distance', row 0: 'far'; expected .*double"),
        ({"distance": [1, "far"]}, "column 'distance', row 1: 'far'"),
        ({"late": [True, None]}, "column 'late', row 1: nan; expected .*boolean"),
        ({"hour": [17, 9.5]}, r"column 'hour', row 1: 9\.5; expected .*long"),
        ({"hour": [None, 9]}, "column 'hour', row 0: nan"),
        ({"hour": [17, 2**63]}, "column 'hour', row 1: 9223372036854775808"),
        ({"hour": [np.inf, 9]}, "column 'hour', row 0: inf"),
        ({"late": [1, 0]}, "column 'late', row 0: 1; expected .*boolean"),
    ],
)
def test_unfit_value_is_named(model, change, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        model.predict({**FRAME.to_dict("list"), **change})


def test_missing_column_is_named(model):
    with refused(ValueError, "'hour'", "'carrier', 'distance', 'hour'"):
        model.predict(FRAME.drop(columns="hour"))
    with refused(ValueError, "[2, 3]", "[rows, 4]"):
        model.predict(FRAME.to_numpy()[:, :3])


def test_missing_number_is_nan(model):
    rows = FRAME.assign(distance=[np.nan, 1.0], extra=["a", "b"])
    assert np.isnan(model.outputs(rows)["probabilities"][0]).all()


def test_tensors_are_accepted_in_every_form(tensor, tmp_path):
    model = Model(onnxserve.export(str(tensor), "onnx", tmp_path / "m.onnx").path)
    images = np.arange(8.0).reshape(2, 2, 2)

    for rows in (images, images.tolist(), {"image": images}, {"anything": images}):
        predicted = model.predict(rows)
        assert predicted["total"].tolist() == [6.0, 22.0]
        np.testing.assert_array_equal(predicted["doubled"], 2 * images)
    with refused(ValueError, "'image' is missing"):
        model.predict({"mask": images, "picture": images})


def test_frame_becomes_a_matrix(network, tmp_path):
    model = Model(onnxserve.export(str(network), "onnx", tmp_path / "m.onnx").path)
    rows = normal_rows(4, 6, seed=1).astype(np.float32)
    np.testing.assert_array_equal(model.predict(pd.DataFrame(rows)), model.predict(rows))


def test_foreign_file_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(parse_graph(IDENTITY).SerializeToString())
    with refused(ValueError, "`onnxserve export`"):
        Model(tmp_path / "m.onnx")


SPREADSHEET = "\ufeffcarrier,distance,hour,late\r\nUA,1400,17.0,TRUE\r\nAA,-4000,9,0\r\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("rows.csv", SPREADSHEET), ("rows.json", FRAME.to_json(orient="records"))],
)
def test_command_predicts_a_file(name, text, bundle, tmp_path, capsys):
    rows = tmp_path / name
    rows.write_bytes(text.encode())
    _run_command(bundle, rows)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["yes", "no"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "carrier,distance,hour\nUA,1,\n", "the column 'late' is missing"),
        ("a.csv", "carrier,distance,hour,late\n", "the file {file} has no rows"),
        ("a.json", "[]", "the file {file} has no rows"),
        ("a.csv", "carrier,distance,hour,late\nUA,1,9,0\nUA,far,9,0\n", "column 'distance', row 1"),
        ("a.csv", "carrier,distance,hour,late\nUA,1,9.5,0\n", "column 'hour', row 0: 9.5"),
        ("a.csv", "carrier,distance,hour,late\nUA,1,9,maybe\n", "column 'late', row 0: 'maybe'"),
        ("a.json", '{"carrier":', "the file {file} cannot be read"),
        ("a.json", "[1, 2]", "row 0 is 1"),
        ("a.csv", None, "the file {file} cannot be read: No such file or directory"),
        ("a.csv", "carrier\nK\udcf6ln\n", "the file {file} cannot be read: 'utf-8'"),
    ],
)
def test_command_error_is_one_line(bundle, tmp_path, name, text, message):
    file = tmp_path / name
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SystemExit) as ended:
        _run_command(bundle, file)
    assert str(ended.value).startswith(f"Error: {message.format(file=file)}")
    assert "\n" not in str(ended.value)


def _run_command(bundle, *files):
    runpy.run_path(str(bundle / "predict.py"))["main"]([str(file) for file in files])


def test_command_may_be_read_in_part(bundle, tmp_path):
    rows = tmp_path / "rows.csv"
    pd.concat([FRAME] * 5000).to_csv(rows, index=False)
    command = f"{sys.executable} -I {bundle}/predict.py {rows} | head -n 1"
    ran = subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True)
    assert json.loads(ran.stdout)["label"] == "yes"
    assert ran.stderr == ""


def test_command_without_file_shows_usage(bundle):
    with refused(SystemExit, "ROWS.csv or ROWS.json"):
        _run_command(bundle)
