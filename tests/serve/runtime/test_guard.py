"""A value is outside if no training row covers it."""

import pytest

from mlflow_deploy_plugin.core.errors import InvalidArtifact, OutOfRange
from mlflow_deploy_plugin.serve.runtime.guard import Guard
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support import models
from tests.support.refusals import refused
from tests.support.servers import single

ROW = {"carrier": "AA", "distance": 1400.5, "hour": 7, "late": False}
WHOLE = """
whole (int64[N,2] X) => (int64[N,2] y) {
  y = Identity(X)
}"""


def check(folder, records, refuses=False):
    """Return the columns of each row that are outside; None if all rows are inside."""
    model = OnnxModel.load(folder)
    outside = Guard(model, refuses).check(model.schema.from_records(records))
    return None if outside is None else outside.tolist()


@pytest.mark.parametrize(
    ("changes", "outside"),
    [
        ({"distance": 5.0, "hour": 23, "carrier": "UA", "late": True}, None),
        ({"distance": None}, None),
        ({"distance": 4.9}, ["", "distance"]),
        ({"hour": -1, "carrier": ""}, ["", "carrier,hour"]),
    ],
)
def test_values_outside_by_column(tmp_path, changes, outside):
    assert check(models.guarded_model(tmp_path), [ROW, {**ROW, **changes}]) == outside


def test_stacked_numbers_of_two_types(tmp_path):
    stacked = models.graph_tensor("X", "float32", -1, 3, columns=["a", "b", "c"])
    types = models.columns(a="float", b="double", c="double")
    models.write_model(tmp_path, single(0.0), types, models.numbers_section(stacked))
    models.with_ranges(tmp_path, {"columns": {"a": [0.1, 0.7], "b": [1, 2]}, "complete": ["a"]})
    rows = [(0.1, None, None), (0.7, 1.0, 9e9), (None, 3.0, 0.0)]
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    assert check(tmp_path, records) == ["", "", "a,b"]


@pytest.mark.parametrize(
    ("number", "outside"),
    [(2**60, None), (2**60 + 9, None), (2**60 + 10, ["id"]), (2**60 - 1, ["id"]), (-7, ["id"])],
)
def test_whole_numbers_beyond_float64_are_compared_exactly(tmp_path, number, outside):
    stacked = models.graph_tensor("X", "int64", -1, 2, columns=["id", "free"])
    types = models.columns(id="long", free="long")
    models.write_model(tmp_path, WHOLE, types, models.numbers_section(stacked))
    models.with_ranges(tmp_path, {"columns": {"id": [2**60, 2**60 + 9]}, "complete": ["id"]})
    assert check(tmp_path, [{"id": number, "free": -(2**63)}]) == outside


def test_refusal_names_column_value_and_range(tmp_path):
    with refused(OutOfRange, "'distance'", "row 1", "4.9", "[5.0, 2500.0]"):
        check(models.guarded_model(tmp_path), [ROW, {**ROW, "distance": 4.9}], refuses=True)


@pytest.mark.parametrize("hours", [7, ["x", "y"], [0, 10**400]])
def test_malformed_ranges_are_named(tmp_path, hours):
    models.guarded_model(tmp_path)
    models.with_ranges(tmp_path, {"columns": {"hour": hours}, "complete": []})
    with refused(InvalidArtifact, "ranges.json"):
        check(tmp_path, [ROW])
