import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Input, Refusals, Tensor
from mlflow_deploy_plugin.serve.runtime.refusals import check_rows
from mlflow_deploy_plugin.serve.runtime.schemas.schema import compile_schema

COLUMNS = (
    Column("distance", "double"),
    Column("hour", "long"),
    Column("wind", "double"),
    Column("carrier", "string"),
)
INPUTS = (
    Input("numbers", "float32", (-1, 3), ("distance", "hour", "wind")),
    Input("carrier", "str", (-1, 1), ("carrier",), missing="?"),
)
DISTANCE = frozenset({"distance"})
ROW = {"distance": 1400.0, "hour": 17, "wind": 3.5, "carrier": "UA"}


def _schema(**refusals):
    return compile_schema(COLUMNS, (), INPUTS, refusals=Refusals(**refusals))


def _refused(schema, start, **changed):
    """Expect that the second of two records is refused, by a message that starts so."""
    with pytest.raises(SchemaMismatch, match=f"^{start}"):
        schema.from_records([ROW, ROW | changed])


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_missing_number_is_refused(missing):
    schema = _schema(missing=DISTANCE)

    assert np.isnan(schema.from_records([ROW | {"wind": missing}])["numbers"][0, 2])
    _refused(schema, "column 'distance', row 1: null", distance=missing)


def test_infinity_is_not_missing():
    schema = compile_schema(
        COLUMNS[:1],
        (),
        (Input("x", "float64", (-1, 1), ("distance",)),),
        refusals=Refusals(missing=DISTANCE),
    )

    assert len(schema.from_columns({"distance": [1.7e308, 1.7e308, np.inf, -np.inf]})["x"]) == 4


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
def test_infinite_number_is_refused(number):
    schema = _schema(infinite=DISTANCE)

    feeds = schema.from_records([ROW | {"distance": None, "wind": number}])
    assert np.isnan(feeds["numbers"][0, 0])
    _refused(schema, "column 'distance', row 1: infinite", distance=number)


@pytest.mark.parametrize(
    ("number", "reason"), [(np.nan, "null or NaN"), (np.inf, "infinite"), (-np.inf, "infinite")]
)
def test_refused_number_is_found_in_a_large_table(number, reason):
    schema = _schema(missing=DISTANCE, infinite=DISTANCE)
    table = {
        name: np.array([value] * 20_000, object if name == "carrier" else None)
        for name, value in ROW.items()
    }
    table["wind"][1] = number

    assert len(schema.from_columns(table)["numbers"]) == 20_000
    table["distance"][12_345] = number
    with pytest.raises(SchemaMismatch, match=f"'distance', row 12345: {reason}"):
        schema.from_columns(table)


def test_first_marked_row_is_named():
    check_rows(np.zeros(2), "the original refuses it", first_row=10)
    with pytest.raises(InferenceError, match=r"^row 12: "):
        check_rows(np.array([0.0, 0.0, np.nan, 1.0]), "the original refuses it", first_row=10)


def test_unknown_category_is_refused():
    schema = _schema(categories={"carrier": ("UA", "DL"), "hour": (16, 17)})

    assert schema.from_records([ROW | {"carrier": None}])["carrier"].tolist() == [["?"]]
    _refused(schema, "column 'carrier', row 1:.*'XX'.*DL, UA, null$", carrier="XX")
    _refused(schema, "column 'hour', row 1:.*18 .*16, 17$", hour=18)


def test_categories_of_a_text_encoder_are_not_compared():
    digits = (Input("hour", "str", (-1, 1), ("hour",)),)
    schema = compile_schema(
        COLUMNS[1:2], (), digits, refusals=Refusals(categories={"hour": (16, 17)})
    )

    assert len(schema.from_columns({"hour": [18]})["hour"]) == 1


@pytest.mark.parametrize(("name", "called"), [("", "the tensor"), ("x", "tensor 'x'")])
def test_missing_number_of_a_tensor_is_refused(name, called):
    refusals = Refusals(missing=frozenset({name}))
    inputs = (Input("x", "float32", (-1, 2)),)
    schema = compile_schema((), (Tensor(name, "float32", (-1, 2)),), inputs, refusals=refusals)

    for rows in ([[1, 2], [3, None]], np.array([[1, 2], [3, np.nan]], np.float32)):
        with pytest.raises(SchemaMismatch, match=f"^{called}, row 1: null"):
            schema.from_array(rows)


@pytest.mark.parametrize(("number", "reason"), [(np.nan, "null or NaN"), (np.inf, "infinite")])
def test_scalar_is_refused_without_a_row(number, reason):
    names = frozenset({"threshold"})
    tensors = (Tensor("threshold", "float32", ()),)
    inputs = (Input("threshold", "float32", ()),)
    schema = compile_schema((), tensors, inputs, refusals=Refusals(missing=names, infinite=names))

    with pytest.raises(SchemaMismatch, match=f"^tensor 'threshold': {reason}"):
        schema.from_columns({"threshold": np.array(number, np.float32)})


def test_stacked_tensors_are_checked_by_column():
    tensors = _schema(missing=DISTANCE).tensor_schema

    with pytest.raises(SchemaMismatch, match=r"^column 'distance', row 0: null"):
        tensors.from_columns(
            {
                "numbers": np.array([[np.nan, 17, 3.5]], np.float32),
                "carrier": np.array([["UA"]], object),
            }
        )
