"""CSV and Excel files are read as the server reads CSV,
and are saved without formulas.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import openpyxl
import pytest

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from mlflow_deploy_plugin.wrap.desktop import tables
from mlflow_deploy_plugin.wrap.desktop.tables import predict_csv, predict_file, save_columns
from tests.support.models import columns, graph_tensor, write_model
from tests.support.refusals import refused

HEADER = "carrier,distance,hour,late\n"
VALUES = {"role": "values"}


@pytest.fixture(scope="module")
def model(mixed: Path) -> OnnxModel:
    return OnnxModel.load(mixed)


def workbook(path: Path, *rows: Sequence[object]) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def test_an_excel_file_and_a_csv_file_have_the_same_predictions(
    model: OnnxModel,
    tmp_path: Path,
) -> None:
    sheet = workbook(
        tmp_path / "rows.xlsx",
        [*HEADER.strip().split(","), None],
        ["AA", 10.5, 1, True],
        [None, None],
        ["UA", 0, 0, False],
    )
    (tmp_path / "rows.csv").write_text(HEADER + "AA,10.5,1,true\nUA,0,0,false\n")
    assert predict_file(model, sheet) == predict_file(model, tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (HEADER + "AA,1,1,true\n\nAA,x,1,true\n", ["distance", "row 3", "x"]),
        (HEADER + "AA,1\n", ["row 2", "4"]),
        ("carrier,distanc,hour,late\nAA,1,1,true\n", ["distance", "distanc"]),
        ("carrier;distance;hour;late\nAA;1,5;1;true\n", ["rows.csv", "semicolons"]),
    ],
)
def test_a_fault_of_a_file_is_named_with_its_row_after_the_header(
    text: str,
    names: list[str],
    model: OnnxModel,
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with refused(InvalidRequest, *names):
        predict_file(model, tmp_path / "rows.csv")


def test_a_cell_with_two_lines_does_not_shift_the_numbers_of_rows(
    model: OnnxModel,
    tmp_path: Path,
) -> None:
    sheet = workbook(
        tmp_path / "rows.xlsx",
        HEADER.strip().split(","),
        ["A\nA", 1, 1, True],
        [],
        ["AA", "x", 1, True],
    )
    with refused(InvalidRequest, "distance", "row 3"):
        predict_file(model, sheet)


@pytest.mark.parametrize(
    "name",
    ["absent.csv", "absent.xlsx", "text.xlsx", "empty.csv", "empty.xlsx", "large.csv"],
)
def test_a_file_that_cannot_be_read_is_refused(
    name: str,
    model: OnnxModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "text.xlsx").write_text(HEADER)
    (tmp_path / "empty.csv").touch()
    (tmp_path / "large.csv").write_text(HEADER * 100)
    workbook(tmp_path / "empty.xlsx")
    monkeypatch.setattr(tables, "_MOST_BYTES", 2000)
    with refused(
        InvalidRequest,
        *([] if name.startswith("empty") else [name]),
    ):
        predict_file(model, tmp_path / name)


def test_texts_are_not_saved_as_formulas(tmp_path: Path) -> None:
    saved: tables.Columns = {
        "=note": ["=1+1", "-5", "@x", None],
        "value": [-1.5, 2, True, None],
    }
    save_columns(tmp_path / "saved.csv", saved)
    save_columns(tmp_path / "saved.xlsx", saved)

    with (tmp_path / "saved.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["'=note", "value"],
            ["'=1+1", "-1.5"],
            ["-5", "2"],
            ["'@x", "true"],
            ["", ""],
        ]
    sheet = openpyxl.load_workbook(tmp_path / "saved.xlsx").active
    assert [cell.value for cell in sheet["A"]] == ["'=note", "'=1+1", "-5", "'@x", None]
    assert [cell.value for cell in sheet["B"]] == ["value", -1.5, 2, True, None]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "saved.csv").mkdir()
    with refused(InvalidRequest, "saved.csv"):
        save_columns(tmp_path / "saved.csv", {"a": [1]})


def test_outputs_with_several_values_per_row_have_a_column_per_value(tmp_path: Path) -> None:
    graph = """
      several (float[N,1] x) => (float[N,2] pair, float[N,1,2] nested, float[1] total)
      <int64[1] axis = {1}, int64[2] all = {0, 1}> {
        pair = Concat<axis=1>(x, x)
        nested = Unsqueeze(pair, axis)
        sum = ReduceSum<keepdims=0>(x, all)
        total = Reshape(sum, axis)
      }"""
    shapes = {
        "pair": [-1, 2],
        "nested": [-1, 1, 2],
        "total": [1],
    }
    section = {
        "inputs": [graph_tensor("x", "float32", -1, 1, columns=["x"])],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": shape} | VALUES
            for name, shape in shapes.items()
        ],
        "prediction": ["pair"],
    }
    model = OnnxModel.load(
        write_model(
            tmp_path / "m",
            graph,
            columns(x="float"),
            section,
        )
    )
    _, predictions = predict_csv(model, b"x\n0.1\n2\n")
    assert predictions == {
        "prediction 0": [0.1, 2.0],
        "prediction 1": [0.1, 2.0],
        "nested 0": [0.1, 2.0],
        "nested 1": [0.1, 2.0],
        "total": [2.1, 2.1],
    }
